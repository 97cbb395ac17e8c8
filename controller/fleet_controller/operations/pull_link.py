"""One host of a pull as seen from the controller: its job, what is heard of it, and the orders that it is given."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fleet_controller.distributing.messages import Stop, order_line
from fleet_controller.domain.base import Problem
from fleet_controller.domain.jobs import JobEvent, JobState, JobStatus
from fleet_controller.domain.pulls import PullState
from fleet_controller.domain.steps import JobSpec
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.jobs import is_attempt_of
from fleet_controller.operations.problems import problem_of
from fleet_controller.operations.secrets import resolve
from fleet_controller.planning.plan import retried
from fleet_controller.planning.secrets import HUB_TOKEN_SECRET
from fleet_controller.pulling.store import PullStore
from fleet_controller.transport.client import AgentClient
from fleet_controller.transport.errors import HostUnreachable, NoAgent, TransportError
from fleet_inventory.hosts import Host

AWAY_PAUSE_SECONDS = 3.0
STEER_PAUSE_SECONDS = 1.0
# Who is silent for that long is told to be away, and is listened for on and on.
SILENT_SECONDS = 5.0
PATIENCE_SECONDS = 24 * 3600.0

Credentials = tuple[bytes, bytes, bytes]


@dataclass(frozen=True)
class Heard:
    """Something about one host. `fresh`: it happened just now; else it is what its job told before we came.

    `caught_up` comes once, when all of that was told. `away`: the host does not answer, and is tried again.
    `beginning` counts the jobs that were begun by this controller for this host.
    """

    name: str
    beginning: int
    document: dict[str, Any] | None = None
    fresh: bool = True
    caught_up: bool = False
    away: Problem | None = None
    ended: JobState | None = None
    problem: Problem | None = None


def job_of(pull_id: str, label: str) -> str:
    """The id of the job that a host's relay is in; `pull_id` has no dash."""
    return f"pull-{pull_id}-{label}"


def pull_of(job_id: str) -> str:
    """The pull that a job is for; "" where it is for something else."""
    kind, _, rest = job_id.partition("-")
    return rest.partition("-")[0] if kind == "pull" else ""


class PullLink:
    """`name` is the host's name in the pull. What is heard goes to `hear`, on the event loop."""

    def __init__(
        self, context: FleetContext, host: Host, name: str, job: JobSpec, hear: Callable[[Heard], None]
    ) -> None:
        self.host = host
        self.name = name
        self.token_file = ""
        self._context = context
        self._job = job
        self._hear = hear
        self._orders: asyncio.Queue[tuple[str, Credentials | None]] = asyncio.Queue()
        self._job_id: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._problem: Problem | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.beginning = 0

    def start(self) -> None:
        self._tasks += [asyncio.create_task(self._follow()), asyncio.create_task(self._send())]

    def start_again(self) -> None:
        """Another job; nothing more is heard of the former one, nor is it told what it was not told yet."""
        for task in self._tasks:
            task.cancel()
        self.beginning += 1
        self._orders = asyncio.Queue()
        self._job_id = asyncio.get_running_loop().create_future()
        self._problem = None
        self.start()

    def order(self, document: str, credentials: Credentials | None = None) -> None:
        """Sent in turn, as soon as the host answers."""
        self._orders.put_nowait((document, credentials))

    async def close(self) -> None:
        """Stops listening. The job goes on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def drained(self) -> None:
        """Returns once every order so far has been given."""
        await self._orders.join()

    # -- hearing ----------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        try:
            boundary = await self._submitted()
            job_id, after, heard_at = await self._job_id, 0, time.monotonic()
            while True:
                try:
                    async for event in self._context.pool.follow_job(
                        self.host, job_id, after, patience_seconds=SILENT_SECONDS
                    ):
                        after, heard_at = event.sequence, time.monotonic()
                        self._tell(event, event.sequence > boundary)
                        if event.sequence == boundary:
                            self._say(caught_up=True)
                    return
                except (HostUnreachable, NoAgent) as error:
                    if time.monotonic() - heard_at > PATIENCE_SECONDS:
                        raise
                    self._say(away=error.problem)
        except Exception as error:
            self._say(ended=JobState.FAILED, problem=problem_of(error))

    def _say(self, **what: Any) -> None:
        self._hear(Heard(self.name, self.beginning, **what))

    async def _submitted(self) -> int:
        """The sequence of the last event that the job had when we came. A host that is away is tried again."""
        while True:
            try:
                job_id, boundary = await self._submit()
                self._job_id.set_result(job_id)
                return boundary
            except (HostUnreachable, NoAgent) as error:
                self._say(away=error.problem)
            await asyncio.sleep(AWAY_PAUSE_SECONDS)

    async def _submit(self) -> tuple[str, int]:
        """A job of this pull that runs there already is joined; one that has ended is followed by another."""
        job = self._job
        async with self._context.pool.client(self.host) as agent:
            if self.host.hub_token:
                token = resolve(self.host.hub_token, f"hub_token of {self.host.name}")
                self.token_file = await agent.put_secret(HUB_TOKEN_SECRET, token.reveal().encode())
            known = {status.job_id: status for status in await agent.list_jobs()}
            attempts = [status for job_id, status in known.items() if is_attempt_of(job_id, job.job_id)]
            active = next((status for status in attempts if not status.state.final), None)
            await self._end_forgotten(agent, known.values())
            if active is None:
                active = await agent.submit_job(retried(job, known))
        return active.job_id, max(1, active.last_sequence)

    async def _end_forgotten(self, agent: AgentClient, jobs: Iterable[JobStatus]) -> None:
        """A host that was away when its pull ended was not told so, and its relay keeps the files from any other."""
        store = PullStore(self._context.database)
        for job in jobs:
            pull_id = pull_of(job.job_id)
            if pull_id and not job.state.final and store.state(pull_id) not in (None, PullState.RUNNING):
                with suppress(TransportError):  # it ended a moment ago
                    await agent.steer_job(job.job_id, order_line(Stop()))

    def _tell(self, event: JobEvent, fresh: bool) -> None:
        if event.document is not None:
            self._say(document=json.loads(event.document), fresh=fresh)
        if event.problem is not None:
            self._problem = event.problem
        if event.state is not None and event.state.final:
            self._say(ended=event.state, problem=self._problem)

    # -- ordering ---------------------------------------------------------------------------------------------

    async def _send(self) -> None:
        while True:
            document, credentials = await self._orders.get()
            job_id = await asyncio.shield(self._job_id)
            await self._sent(job_id, document, credentials)
            self._orders.task_done()

    async def _sent(self, job_id: str, document: str, credentials: Credentials | None) -> None:
        """As often as the host does not answer; a job that has ended takes no order, and needs none."""
        while True:
            try:
                async with self._context.pool.client(self.host) as agent:
                    await agent.steer_job(job_id, document, credentials)
                return
            except (HostUnreachable, NoAgent):
                await asyncio.sleep(STEER_PAUSE_SECONDS)
            except TransportError:
                return
