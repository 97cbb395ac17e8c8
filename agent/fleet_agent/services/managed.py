"""One service: its process watched, its state moved by transitions.py, every step of it in the journal first."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from fleet_agent.problem import ProblemError
from fleet_agent.process import (
    ProcessIdentity,
    exit_code,
    forget,
    is_alive,
    is_child,
    terminate_tree,
    tree_members,
)
from fleet_agent.services.admission import Devices
from fleet_agent.services.attendance import Attendance, since_start
from fleet_agent.services.causes import exit_problem, recognise
from fleet_agent.services.commands import CommandFailedError, end_command, run_command
from fleet_agent.services.ending import end_remains
from fleet_agent.services.journal import Remains, ServiceRecord, Successor
from fleet_agent.services.launch import NOBODY, TOKEN_VARIABLE, Launch, find_by_marker, spawn_marked
from fleet_agent.services.logs import ServiceLog
from fleet_agent.services.model import (
    DesiredState,
    Problem,
    ServiceSpec,
    ServiceState,
    ServiceStatus,
    ToolRun,
)
from fleet_agent.services.status import status_of
from fleet_agent.services.transitions import (
    Abandoned,
    Begun,
    Condition,
    Event,
    Exited,
    Lost,
    Refused,
    Requested,
    RestartPolicy,
    Spawned,
    StartFailed,
    Stopped,
    advance,
)
from fleet_agent.tasks import end_task

DEFAULT_GRACE_SECONDS = 20.0

_logger = logging.getLogger(__name__)


class KeepsRecords(Protocol):
    """Where a service's record is written: durable at the return. Raises OSError."""

    def write(self, record: ServiceRecord) -> None: ...


@dataclass(frozen=True)
class ServiceContext:
    """What every service of an agent shares. `prepare` raises ProblemError where a spec cannot be started now.

    `command` is what running one of its tools before a start or after an end means here; it raises ProblemError, too.
    """

    journal: KeepsRecords
    policy: RestartPolicy
    devices: Devices
    prepare: Callable[[ServiceSpec, "ManagedService"], Awaitable[Launch]]
    folder: Path
    command: Callable[[ServiceSpec, ToolRun], Launch]


class ManagedService:
    """The life of one service. All its methods belong to one event loop."""

    def __init__(self, record: ServiceRecord, context: ServiceContext, log: ServiceLog) -> None:
        self.record = record
        self.log = log
        self._context = context
        self._task: asyncio.Task[None] | None = None
        self._watchers: set[asyncio.Queue[ServiceRecord | None]] = set()
        self._seen_members: tuple[ProcessIdentity, ...] = ()
        self._paused: Problem | None = None

    @property
    def name(self) -> str:
        return self.record.spec.name

    @property
    def state(self) -> ServiceState:
        return self.record.condition.state

    @property
    def wanted(self) -> bool:
        return self.record.desired is DesiredState.RUNNING

    def members(self) -> tuple[ProcessIdentity, ...]:
        """The running processes of this service: the server, its descendants and its session."""
        process = self.record.process
        return tree_members(process) if process is not None and is_alive(process) else ()

    def note_members(self) -> None:
        """What runs now ends with the server, also where it left the server's session."""
        self._seen_members = self.members()

    def all_members(self) -> tuple[ProcessIdentity, ...]:
        """Also those of a former server that is ending."""
        leaving = [one.process for one in self.record.leaving if one.process is not None and is_alive(one.process)]
        return (*self.members(), *(member for process in leaving for member in tree_members(process)))

    # --- what the supervisor asks for ---

    def adopt(self) -> None:
        """Takes up what the journal knows after an agent's start: the running server, or a start of a new one."""
        process = self.record.process or self._find_unrecorded()
        if process is not None and (self.state not in _WITH_PROCESS or not is_alive(process)):
            self.change(Requested())  # nobody may take a server for READY that died with the agent before
        if process is not None and process != self.record.process:
            _logger.info("%s: pid %d was started right before a crash; it is ours", self.name, process.pid)
            self.change(Spawned(), process=process, problem=None, persist=True)
        if not self.wanted:
            self._task = asyncio.ensure_future(self._finish_stop())
            return
        if self._paused is not None:
            self._task = asyncio.ensure_future(self._finish_pause(self._paused))
            return
        if process is None and self.state not in (ServiceState.STARTING, ServiceState.BACKING_OFF):
            self.change(Requested(), problem=None, persist=True)
        self._begin()

    def _find_unrecorded(self) -> ProcessIdentity | None:
        """The server of a start that was announced in the journal, and whose identity was not written any more."""
        return find_by_marker(f"{TOKEN_VARIABLE}={self.record.token}") if self.record.token else None

    def request(self, spec: ServiceSpec) -> None:
        """Makes this the desired state and starts it. The former process must be gone. Raises OSError (journal)."""
        condition = Condition(ServiceState.STARTING)
        record = ServiceRecord(spec, DesiredState.RUNNING, condition)
        self._context.journal.write(record)
        self.record = record
        self._notify()
        self._begin()

    def keep_successor(self, successor: Successor | None, *, persist: bool = True) -> None:
        """Notes the server that is started beside this one. Raises OSError (journal); then nothing is changed."""
        record = replace(self.record, successor=successor)
        if persist:
            self._context.journal.write(record)
        self.record = record
        self._notify()

    def become(self, record: ServiceRecord) -> None:
        """Another server is the service from now on; what `record` says is leaving ends. Raises OSError (journal).

        Nobody may watch this one: release() first.
        """
        self._context.journal.write(record)
        self.record, self._seen_members = record, ()
        self._notify()
        self._begin()

    def unwanted(self) -> None:
        """The desired state first, so that a crash before the end still leads there."""
        self.change(None, desired=DesiredState.STOPPED, persist=True)

    def resume(self) -> None:
        """Watches on after release()."""
        if self.wanted and self.state is not ServiceState.FAILED:
            self._begin()

    async def halt(self, grace_seconds: float) -> None:
        """Ends the whole tree; the desired state stays as it is. Blocks until it is gone."""
        await self.release()
        await self._end_tree(grace_seconds or DEFAULT_GRACE_SECONDS)

    async def stop(self, grace_seconds: float) -> None:
        """The desired state first, so that a crash in between still ends it. Blocks until the tree is gone."""
        self.unwanted()
        try:
            await self.halt(grace_seconds)
        except ProblemError as error:
            self.change(Abandoned(), problem=Problem(error.code, error.message, error.remedy), persist=True)
            raise

    def hold_from_start(self, problem: Problem) -> None:
        """Before adopt(): a bench paused it, and still has its device."""
        self._paused = problem

    async def pause(self, problem: Problem) -> None:
        """Ends the server and starts none until unpause(); it stays wanted. One that is not wanted is left alone."""
        if self._paused is not None or not self.wanted or self.state is ServiceState.FAILED:
            return
        self._paused = problem
        try:
            await self.halt(DEFAULT_GRACE_SECONDS)
        except ProblemError as error:
            self._paused = None
            self.change(Abandoned(), problem=Problem(error.code, error.message, error.remedy), persist=True)
            return
        self.change(None, problem=problem, persist=True)

    async def unpause(self) -> None:
        """Starts it again where it was paused and is still wanted."""
        if self._paused is None:
            return
        await self.release()
        self._paused = None
        if self.wanted:
            self.change(Requested(), problem=None, persist=True)
            self._begin()

    async def release(self) -> None:
        """Stops watching; the server goes on."""
        task, self._task = self._task, None
        if task is not None:
            await end_task(task)

    def removed(self) -> None:
        """Tells the watchers that this service is no more."""
        for queue in self._watchers:
            queue.put_nowait(None)

    async def watch(self) -> AsyncIterator[ServiceStatus]:
        """The present status, then each change, until the service is removed."""
        queue: asyncio.Queue[ServiceRecord | None] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            yield self.status()
            while (record := await queue.get()) is not None:
                yield self.status(record)
        finally:
            self._watchers.discard(queue)

    def status(self, record: ServiceRecord | None = None) -> ServiceStatus:
        record = record or self.record
        members = self.members() if record.process == self.record.process else ()
        return status_of(record, members, self._context.devices)

    # --- its life ---

    def _begin(self) -> None:
        if self._paused is not None:
            return
        self._task = asyncio.ensure_future(self._live())

    async def _live(self) -> None:
        try:
            await self._end_command()
            await self._end_leaving()
            while self.state is not ServiceState.FAILED:
                if self.record.process is None:
                    await self._wait_for_turn()
                    await self._launch()
                process = self.record.process
                if process is not None:
                    watched = is_alive(process) or is_child(process)
                    attendance = Attendance(self, self.log, process)
                    if watched:
                        await attendance.run()
                    # What a dead server left behind (workers that hold the device) goes before the next start.
                    await self._end_members(process, DEFAULT_GRACE_SECONDS)
                    self._note_exit(process, attendance.ending) if watched else self._note_loss(process)
            await self._undo_start()
        except ProblemError as error:
            _logger.error("%s: given up: %s", self.name, error)
            self.change(Abandoned(), problem=Problem(error.code, error.message, error.remedy), persist=True)
        except Exception:
            _logger.exception("%s: its supervision failed", self.name)
            problem = Problem("internal-error", "the agent's supervision of this service failed", "see the agent's log")
            self.change(Abandoned(), problem=problem, persist=True)

    async def _wait_for_turn(self) -> None:
        next_start_at = self.record.condition.next_start_at
        if self.state is ServiceState.BACKING_OFF and next_start_at is not None:
            # The wall clock may have been set back meanwhile: never longer than the policy's longest delay.
            longest = self._context.policy.longest_delay_seconds
            await asyncio.sleep(min(max(next_start_at - time.time(), 0.0), longest))

    async def _launch(self) -> None:
        """Checks once more, runs what comes before, writes the intent, starts the server, writes its identity."""
        spec = self.record.spec
        try:
            if spec.before_start or spec.after_stop:
                self.change(Begun(), persist=True)
            await self._undo_start()
            launch = await self._context.prepare(spec, self)
            for run in spec.before_start:
                await self._run(run)
            token = secrets.token_hex(16)
            self.record = replace(self.record, token=token, argv=launch.argv)
            self._context.journal.write(self.record)
            self.log.rotate_if_large()
            self.log.note(f"{datetime.now().astimezone().isoformat(timespec='seconds')} start: {' '.join(launch.argv)}")
            process = spawn_marked(launch, self._context.folder, spec.name, token, self.log)
        except CommandFailedError as error:
            _logger.warning("%s: its start failed: %s", self.name, error.problem.message.splitlines()[0])
            self.change(StartFailed(error.permanent), problem=error.problem, persist=True)
            return
        except ProblemError as error:
            self.change(Refused(), problem=Problem(error.code, error.message, error.remedy), persist=True)
            return
        except OSError as error:
            problem = Problem("cannot-start", f"it could not be started: {error}", "see `fleet doctor` for this host")
            self.change(Refused(), problem=problem, persist=True)
            return
        self.change(Spawned(), process=process, problem=None, persist=True)
        _logger.info("%s: started as pid %d", self.name, process.pid)

    async def _undo_start(self) -> None:
        """Takes back what a start did outside the server's own processes, also one that was cut off half-way.

        A failure changes nothing: mostly there was nothing to take back.
        """
        for run in self.record.spec.after_stop:
            try:
                await self._run(run)
            except (CommandFailedError, ProblemError, OSError) as error:
                _logger.info("%s: %s", self.name, str(error).splitlines()[0])

    async def _run(self, run: ToolRun) -> None:
        launch = self._context.command(self.record.spec, run)

        def note(command: ProcessIdentity) -> None:
            self.change(None, command=command, persist=True)

        try:
            await run_command(launch, run.limit_seconds, self._context.folder, self.log, note)
        except CommandFailedError:
            self.change(None, command=None)
            raise
        self.change(None, command=None)

    async def _end_command(self) -> None:
        """What was running before a start or after an end when somebody stopped the service, or the agent died."""
        command = self.record.command
        if command is not None:
            await end_command(command)
            self.change(None, command=None)

    async def _end_leaving(self) -> None:
        """Ends what a hand-over left: the former server, and the one with which the new one was tried."""
        if not self.record.leaving:
            return
        if self.record.process is not None:
            self._take_log()
        stuck = [one for one in self.record.leaving if await self._outlives(one)]
        self.change(None, leaving=tuple(stuck), persist=True)

    async def _outlives(self, remains: Remains) -> bool:
        left = await end_remains(remains, DEFAULT_GRACE_SECONDS)
        if left:
            pids = ", ".join(str(one.pid) for one in left)
            _logger.error("%s: not even SIGKILL ended pid %s of a former server", self.name, pids)
        elif remains.process is not None:
            forget(remains.process)
        return bool(left)

    def _take_log(self) -> None:
        """The server that runs was started beside another, and writes to a log of its own."""
        try:
            self.log.take(self.log.beside())
        except OSError as error:
            _logger.warning("%s: its log could not be renamed: %s", self.name, error)

    def _note_exit(self, process: ProcessIdentity, ending: Problem | None) -> None:
        """Writes down how it ended and why, as far as its log tells."""
        code = exit_code(process)
        forget(process)
        text = since_start(self.log, self.record.spec)
        known = recognise(text)
        permanent = known is not None and known[1]
        problem = ending or exit_problem(self.name, code, text)
        _logger.warning("%s: pid %d ended: %s", self.name, process.pid, problem.message.splitlines()[0])
        self.change(Exited(permanent), process=None, token="", last_exit_code=code, problem=problem, persist=True)
        if self.state is ServiceState.FAILED:
            _logger.error("%s: given up: %s", self.name, problem.message.splitlines()[0])

    def _note_loss(self, process: ProcessIdentity) -> None:
        _logger.warning("%s: pid %d ended while no agent watched; it is started again", self.name, process.pid)
        self.change(Lost(), process=None, token="", last_exit_code=None, problem=None, persist=True)

    async def _end_members(self, process: ProcessIdentity | None, grace_seconds: float) -> None:
        marker = f"{TOKEN_VARIABLE}={self.record.token}" if self.record.token else None
        others = [one for one in self._seen_members if one != process and is_alive(one)]
        targets = (process or NOBODY, *others)
        left = await asyncio.gather(*(terminate_tree(one, grace_seconds, marker) for one in targets))
        stuck = sorted({one.pid for group in left for one in group})
        self._seen_members = ()
        if stuck:
            raise ProblemError(
                "process-stuck",
                f"{self.name}: not even SIGKILL ended pid {', '.join(map(str, stuck))}; the kernel holds it",
                "a driver may hang: see `dmesg` on the host; a reboot ends it",
            )

    async def _end_tree(self, grace_seconds: float) -> None:
        process = self.record.process
        await self._end_command()
        await self._end_leaving()
        await self._end_members(process, grace_seconds)
        if self.state is not ServiceState.STOPPED:
            await self._undo_start()
        code = exit_code(process) if process is not None else self.record.last_exit_code
        if process is not None:
            forget(process)
        self.change(Stopped(), process=None, token="", last_exit_code=code, problem=None, persist=True)

    async def _finish_stop(self) -> None:
        """A stop that an agent's crash interrupted goes on."""
        record = self.record
        if record.process is not None or record.token or record.leaving or self.state is not ServiceState.STOPPED:
            await self._end_tree(DEFAULT_GRACE_SECONDS)

    async def _finish_pause(self, problem: Problem) -> None:
        """A pause that an agent's crash interrupted goes on."""
        await self._finish_stop()
        self.change(None, problem=problem, persist=True)

    def change(self, event: Event | None, *, persist: bool = False, **fields: Any) -> None:
        """Moves the condition by `event`, sets `fields` of the record, writes it if told, tells the watchers."""
        before = self.record
        condition = before.condition
        if event is not None:
            condition = advance(condition, event, time.time(), self._context.policy)
        self.record = replace(before, condition=condition, **fields)
        if persist:
            self._persist()
        if _visible(self.record) != _visible(before):
            self._notify()

    def _persist(self) -> None:
        """A disk that is full must not keep a server from being stopped or watched: what is true stays in memory."""
        try:
            self._context.journal.write(self.record)
        except OSError as error:
            _logger.error("%s: its journal could not be written: %s", self.name, error)

    def _notify(self) -> None:
        for queue in self._watchers:
            queue.put_nowait(self.record)


def _visible(record: ServiceRecord) -> ServiceRecord:
    """Without what no watcher sees."""
    return replace(record, token="", command=None, condition=replace(record.condition, failed_probes=0))


_WITH_PROCESS = (ServiceState.STARTING, ServiceState.READY, ServiceState.UNHEALTHY)
