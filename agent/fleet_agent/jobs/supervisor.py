"""The agent's side of jobs: takes them in, keeps a runner alive for each, and lets many watch.

The supervisor executes nothing itself. A runner outlives it; after a restart the supervisor adopts the runners
that live and replaces the ones that do not.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from fleet_agent.configuration import check_environment
from fleet_agent.jobs.children import end_children
from fleet_agent.jobs.errors import SpecProblem
from fleet_agent.jobs.model import JobEvent, JobSpec, JobState, JobStatus, Problem
from fleet_agent.jobs.steering import Steering
from fleet_agent.jobs.store import EXIT_INTERRUPTED, EXIT_LOCKED, EventReader, EventWriter, JobFolder, JobStore, JobView
from fleet_agent.layout import Layout
from fleet_agent.problem import ProblemError
from fleet_agent.process import ProcessIdentity, exit_code, forget, is_alive, send_signal, spawn, terminate_tree
from fleet_agent.process import wait_gone as wait_process_gone
from fleet_agent.steps import module_for
from fleet_agent.tasks import end_task

MAX_ATTEMPTS = 3
CANCEL_GRACE_SECONDS = 30.0
CHILD_GRACE_SECONDS = 10.0
LOCKED_PAUSE_SECONDS = 0.2
# A runner that could not even be started: no memory, no process left, a full disk.
START_PAUSE_SECONDS = 5.0
# Ended jobs are kept for whoever asks late; a bench's output may take megabytes, so not all for ever.
KEPT_ENDED_JOBS = 200
FALLBACK_POLL_SECONDS = 0.25
PIPE_BYTES = 1 << 16

_logger = logging.getLogger(__name__)


def check_spec(spec: JobSpec) -> None:
    """Raises SpecProblem or another ProblemError where a step breaks a rule; nothing is written before."""
    if not spec.steps:
        raise SpecProblem("the job has no step")
    check_environment({variable.name: variable.value for variable in spec.environment})
    for step in spec.steps:
        module_for(step.kind).check(step.kind)


class JobSupervisor:
    """All jobs of this agent."""

    def __init__(self, layout: Layout, runner_command: Sequence[str] | None = None) -> None:
        """runner_command: how to start a runner; the job's folder is appended."""
        self.layout = layout
        self._store = JobStore(layout.jobs_dir)
        self._command = tuple(runner_command or (sys.executable, "-m", "fleet_agent", "run-job"))
        self._views: dict[str, JobView] = {}
        self._overseers: dict[str, asyncio.Task[None]] = {}
        self._bells: dict[str, _Bell] = {}
        self._cancels: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Take up every unfinished job: adopt its runner, or give it a new one."""
        self._store.sweep()
        for status in self.list(active_only=True):
            self._oversee(self._store.folder(status.job_id))
        self._prune()

    async def close(self) -> None:
        """Stop looking after jobs. Their runners go on; a cancel that is not through is taken up by the next agent."""
        await asyncio.gather(*map(end_task, [*self._overseers.values(), *self._cancels.values()]))
        for bell in list(self._bells.values()):
            bell.close()
        self._bells.clear()

    async def submit(self, spec: JobSpec) -> JobStatus:
        """Take in a job; sending it again changes nothing. It is on disk when this returns.

        Raises SpecProblem, JobConflict, EnvironmentNotAllowedError, ToolError.
        """
        check_spec(spec)
        folder, is_new = self._store.create(spec)
        status = self._view(folder).status()
        if not status.state.terminal:
            self._oversee(folder)
        if is_new:
            self._prune()
        return status

    def get(self, job_id: str) -> JobStatus:
        """Raises UnknownJob."""
        return self._view(self._store.folder(job_id)).status()

    def list(self, active_only: bool = False) -> tuple[JobStatus, ...]:
        """Every job, oldest first. One whose folder is damaged is left out and logged: it hurts no other."""
        statuses = []
        for folder in self._store.folders():
            try:
                statuses.append(self._view(folder).status())
            except (ValueError, TypeError, OSError, ProblemError) as error:
                _logger.error("job %s cannot be read: %s", folder.job_id, error)
        kept = [status for status in statuses if not (active_only and status.state.terminal)]
        return tuple(sorted(kept, key=lambda status: (status.created_unix_ms, status.job_id)))

    def active_specs(self) -> tuple[tuple[str, JobSpec], ...]:
        """Id and spec of every unfinished job: what such a job needs must stay."""
        specs = []
        for status in self.list(active_only=True):
            try:
                specs.append((status.job_id, JobFolder(self.layout.jobs_dir / status.job_id).spec()))
            except (ValueError, TypeError, OSError, ProblemError):
                continue  # a damaged or just removed job runs nothing
        return tuple(specs)

    def active_identities(self) -> tuple[ProcessIdentity, ...]:
        """The living runners, for telling our own processes from foreign ones."""
        runners = (living_runner(JobFolder(self.layout.jobs_dir / job_id)) for job_id in self._overseers)
        return tuple(runner for runner in runners if runner is not None)

    async def watch(self, job_id: str, after_sequence: int = 0) -> AsyncIterator[JobEvent]:
        """The job's events after `after_sequence`, then each new one; ends after the terminal one."""
        folder = self._store.folder(job_id)
        reader = EventReader(folder.events_path)
        with self._ringing(folder) as rung:
            while True:
                rung.clear()
                for event in reader.read():
                    if event.sequence > after_sequence:
                        yield event
                    if event.state is not None and event.state.terminal:
                        return
                with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                    await asyncio.wait_for(rung.wait(), self._bells[job_id].poll_seconds)

    async def cancel(self, job_id: str) -> JobStatus:
        """End the job and its whole process tree; returns when they are gone. A finished job stays as it is."""
        folder = self._store.folder(job_id)
        view = self._view(folder)
        if view.status().state.terminal:
            return view.status()
        folder.request_cancel()
        task = self._cancels.get(job_id)
        if task is None:
            task = self._cancels[job_id] = asyncio.create_task(self._cancel(folder), name=f"cancel {job_id}")
            task.add_done_callback(lambda _: self._cancels.pop(job_id, None))
        await asyncio.shield(task)  # a caller who goes away must not leave a job that nobody looks after
        return view.status()

    def steer(self, job_id: str, document: str, credentials: tuple[str, str, str] | None) -> JobStatus:
        """Give an order to a job that takes orders. Raises UnknownJob, SpecProblem, ProblemError for one that ended."""
        folder = self._store.folder(job_id)
        status = self._view(folder).status()
        if all(step.relay is None for step in folder.spec().steps):
            raise SpecProblem(f"job {job_id} takes no orders")
        if status.state.terminal:
            raise ProblemError("job-ended", f"job {job_id} has ended", "submit it again")
        steering = Steering(folder)
        if credentials is not None:
            steering.put_credentials(*credentials)
        if document:
            steering.append(document)
        return status

    async def _cancel(self, folder: JobFolder) -> None:
        overseer = self._overseers.get(folder.job_id)
        if overseer is not None:
            await end_task(overseer)
        await self._finish_cancel(folder)

    async def _finish_cancel(self, folder: JobFolder) -> None:
        while (runner := living_runner(folder) or await self._starting_runner(folder)) is not None:
            send_signal(runner, signal.SIGTERM)
            if not await wait_process_gone(runner, CANCEL_GRACE_SECONDS):
                await terminate_tree(runner, 0.0)
            forget(runner)
        await end_children(folder, CHILD_GRACE_SECONDS)
        self._close_job(folder, JobState.CANCELLED, None)

    async def _starting_runner(self, folder: JobFolder) -> ProcessIdentity | None:
        """A runner that holds the lock and has not yet written down who it is."""
        while True:
            with folder.lock() as ours:
                if ours:
                    return None
            await asyncio.sleep(LOCKED_PAUSE_SECONDS)
            if (runner := living_runner(folder)) is not None:
                return runner

    def _prune(self) -> None:
        ended = [status.job_id for status in self.list() if status.state.terminal]
        for job_id in ended[:-KEPT_ENDED_JOBS]:
            if job_id not in self._bells:  # somebody watches it
                with contextlib.suppress(OSError):
                    self._store.remove(self._store.folder(job_id))
                self._views.pop(job_id, None)

    def _view(self, folder: JobFolder) -> JobView:
        return self._views.setdefault(folder.job_id, JobView(folder))

    def _oversee(self, folder: JobFolder) -> None:
        if folder.job_id not in self._overseers:
            task = asyncio.create_task(self._keep_running(folder), name=f"job {folder.job_id}")
            self._overseers[folder.job_id] = task
            task.add_done_callback(lambda done: self._forget_overseer(folder.job_id, done))

    def _forget_overseer(self, job_id: str, done: "asyncio.Task[None]") -> None:
        if self._overseers.get(job_id) is done:
            del self._overseers[job_id]

    async def _keep_running(self, folder: JobFolder) -> None:
        started = 0
        while not self._view(folder).status().state.terminal:
            if folder.cancel_requested:
                await self._finish_cancel(folder)
                return
            runner = living_runner(folder)
            if runner is None:
                if max(started, int(folder.runner().get("attempt", 0))) >= MAX_ATTEMPTS:
                    await self._give_up(folder)
                    return
                started += 1
                try:
                    runner = self._start_runner(folder)
                except OSError as error:
                    _logger.error("job %s: its runner cannot be started: %s", folder.job_id, error)
                    await asyncio.sleep(START_PAUSE_SECONDS)
                    continue
            await wait_process_gone(runner)
            if exit_code(runner) in (EXIT_LOCKED, EXIT_INTERRUPTED):
                started -= 1
                await asyncio.sleep(LOCKED_PAUSE_SECONDS)
            forget(runner)

    def _start_runner(self, folder: JobFolder) -> ProcessIdentity:
        with folder.log_path.open("ab") as log:
            return spawn((*self._command, str(folder.path)), os.environ, Path("/"), log, log)

    async def _give_up(self, folder: JobFolder) -> None:
        await end_children(folder, CHILD_GRACE_SECONDS)
        last = last_line(folder.log_path)
        problem = Problem(
            "runner-died",
            f"the job's runner process ended {MAX_ATTEMPTS} times before the job did" + (f": {last}" if last else ""),
            f"see {folder.log_path} on the host (out of memory? killed?); then submit it as a new job",
        )
        self._close_job(folder, JobState.FAILED, problem)

    def _close_job(self, folder: JobFolder, state: JobState, problem: Problem | None) -> None:
        """Write the end of a job that has no runner any more."""
        with folder.lock() as ours:
            if not ours:
                return
            (folder.path / "reserve").unlink(missing_ok=True)
            Steering(folder).remove_credentials()
            with EventWriter(folder) as writer:
                if any(event.state is not None and event.state.terminal for event in writer.events):
                    return
                if problem is not None:
                    writer.append(problem=problem)
                writer.append(state=state)

    @contextlib.contextmanager
    def _ringing(self, folder: JobFolder) -> Iterator[asyncio.Event]:
        """An event that is set whenever somebody appended to the job."""
        bell = self._bells.get(folder.job_id)
        if bell is None:
            bell = self._bells[folder.job_id] = _Bell(folder.wake_path)
        rung = asyncio.Event()
        bell.watchers.add(rung)
        try:
            yield rung
        finally:
            bell.watchers.discard(rung)
            if not bell.watchers and self._bells.get(folder.job_id) is bell:
                del self._bells[folder.job_id]
                bell.close()


class _Bell:
    """The reading end of a job's named pipe, shared by all who watch the job."""

    def __init__(self, path: Path) -> None:
        self.watchers: set[asyncio.Event] = set()
        self.poll_seconds: float | None = None
        self._loop = asyncio.get_running_loop()
        self._descriptor: int | None = None
        try:
            # Also for writing: a pipe whose last writer has gone would be readable for ever.
            self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            self._loop.add_reader(self._descriptor, self._ring)
        except OSError:  # a file system without named pipes
            self.poll_seconds = FALLBACK_POLL_SECONDS

    def _ring(self) -> None:
        assert self._descriptor is not None
        with contextlib.suppress(BlockingIOError):
            os.read(self._descriptor, PIPE_BYTES)
        for watcher in self.watchers:
            watcher.set()

    def close(self) -> None:
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None


def living_runner(folder: JobFolder) -> ProcessIdentity | None:
    """The runner that is written down for the job, where that very process lives."""
    record = folder.runner()
    if "pid" not in record:
        return None
    identity = ProcessIdentity(int(record["pid"]), str(record["start_token"]))
    return identity if is_alive(identity) else None


def last_line(path: Path) -> str:
    """The last line with text in it; empty where there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 4096))
            lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines()]
    except OSError:
        return ""
    return next((line[:300] for line in reversed(lines) if line), "")
