"""The agent's side of leases: it stops the services that a bench paused, and starts them again when the lease ends.

Event-driven: a runner that takes or ends a lease rings a named pipe, and the death of a runner is the kernel's own
notice. After its own restart the agent reads what is there; a lease whose holder died meanwhile holds nothing.
"""

import asyncio
import contextlib
import logging
import os

from fleet_agent.leases.store import Lease, LeaseStore
from fleet_agent.process import ProcessIdentity, wait_gone
from fleet_agent.services.model import Problem
from fleet_agent.services.supervisor import ServiceSupervisor
from fleet_agent.tasks import end_task

_PIPE_BYTES = 1 << 16
_logger = logging.getLogger(__name__)


class LeaseKeeper:
    """One per agent; its methods belong to the agent's event loop."""

    def __init__(self, store: LeaseStore, services: ServiceSupervisor) -> None:
        self._store = store
        self._services = services
        self._descriptor: int | None = None
        self._watches: dict[ProcessIdentity, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take up the leases that live. Services that they pause stay down; the supervisor knows them already."""
        self._store.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._store.sweep()
        self._open_pipe()
        self._changed.set()
        self._task = asyncio.create_task(self._live(), name="leases")

    async def close(self) -> None:
        """Let go; leases and pauses stay as they are."""
        if self._descriptor is not None:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
        tasks = [*self._watches.values(), *([self._task] if self._task is not None else [])]
        await asyncio.gather(*map(end_task, tasks))

    async def _live(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._sync()
            except Exception:
                _logger.exception("the leases could not be followed")

    async def _sync(self) -> None:
        for lease in self._store.live():
            if lease.holder not in self._watches:
                self._watches[lease.holder] = asyncio.create_task(self._watch(lease.holder))
        held = self._store.paused()
        await self._services.hold({name: pause_problem(lease) for name, lease in held.items()})

    async def _watch(self, holder: ProcessIdentity) -> None:
        await wait_gone(holder)
        self._watches.pop(holder, None)
        self._store.sweep()
        self._changed.set()

    def _open_pipe(self) -> None:
        path = self._store.wake_path
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        # Also for writing: a pipe whose last writer has gone would be readable for ever.
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        asyncio.get_running_loop().add_reader(self._descriptor, self._ring)

    def _ring(self) -> None:
        assert self._descriptor is not None
        with contextlib.suppress(BlockingIOError):
            os.read(self._descriptor, _PIPE_BYTES)
        self._changed.set()


def pause_problem(lease: Lease) -> Problem:
    """Why a service that should run does not: what `fleet ps` shows meanwhile."""
    return Problem("paused", f"paused by {lease.describe()}", "it starts again by itself when that has ended")
