"""The runner: one process that executes the steps of one job (`python -m fleet_agent run-job <folder>`).

It outlives the agent that started it, holds the job's lock while it lives, and can be killed at any moment: the
next runner skips the steps that are finished and repeats the one that is not.
"""

import asyncio
import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

from fleet_agent.configuration import check_environment, read_configuration
from fleet_agent.jobs.children import ChildRecord, end_children
from fleet_agent.jobs.disk import check_disk
from fleet_agent.jobs.emitter import Emitter
from fleet_agent.jobs.errors import DISK_FULL_ERRNOS, READ_ONLY_ERRNOS, JobProblem, disk_full, not_writable
from fleet_agent.jobs.model import JobEvent, JobSpec, JobState, Problem, StepResult
from fleet_agent.jobs.store import EXIT_INTERRUPTED, EXIT_LOCKED, EventWriter, JobFolder, write_json
from fleet_agent.layout import Layout
from fleet_agent.problem import ProblemError
from fleet_agent.process import identity_of
from fleet_agent.redaction import Redactor, redacted
from fleet_agent.secrets import SecretStore
from fleet_agent.steps import module_for
from fleet_agent.steps.context import CHILD_GRACE_SECONDS, StepContext
from fleet_agent.steps.output import free_bytes

RESERVE_BYTES = 64 << 10


def main(job_dir: str | Path) -> int:
    """Run the job in `job_dir` to its end; the exit status."""
    folder = JobFolder(Path(job_dir).absolute())
    with folder.lock() as ours:
        if not ours:
            return EXIT_LOCKED
        with EventWriter(folder) as writer:
            if any(event.state is not None and event.state.terminal for event in writer.events):
                return 0
            return asyncio.run(Runner(folder, writer).run())


class Runner:
    """One attempt at one job."""

    def __init__(self, folder: JobFolder, writer: EventWriter) -> None:
        self._folder = folder
        self._emitter = Emitter(writer)
        self._finished = finished_steps(writer.events)
        self._cancelled = threading.Event()
        self._reserve = folder.path / "reserve"

    async def run(self) -> int:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop, task)
        try:
            self._claim()
            await end_children(self._folder, CHILD_GRACE_SECONDS)
            self._emitter.event(state=JobState.RUNNING)
            if self._folder.cancel_requested:
                raise asyncio.CancelledError
            await self._work()
        except asyncio.CancelledError:
            if not self._folder.cancel_requested:
                self._give_attempt_back()
                return EXIT_INTERRUPTED
            return self._end(JobState.CANCELLED, None)
        except Exception as error:
            problem = self._problem_of(error)
            self._reserve.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the log lies on the disk that may be full
                print(self._emitter.redact(traceback.format_exc()), file=sys.stderr, flush=True)
            return self._end(JobState.FAILED, problem)
        return self._end(JobState.SUCCEEDED, None)

    def _stop(self, task: "asyncio.Task[int]") -> None:
        self._cancelled.set()
        task.cancel()

    def _claim(self) -> None:
        """Write down who we are, and keep a little disk back so that a full disk can still be reported."""
        identity = identity_of(os.getpid())
        assert identity is not None
        attempt = int(self._folder.runner().get("attempt", 0)) + 1
        record = {"attempt": attempt, "pid": identity.pid, "start_token": identity.start_token}
        write_json(self._folder.runner_path, record)
        with contextlib.suppress(OSError):
            self._reserve.write_bytes(os.urandom(RESERVE_BYTES))

    def _give_attempt_back(self) -> None:
        """A host that goes down is no failure of the job: it may do so as often as it likes."""
        record = self._folder.runner()
        with contextlib.suppress(OSError):
            write_json(self._folder.runner_path, {**record, "attempt": max(0, int(record.get("attempt", 1)) - 1)})

    async def _work(self) -> None:
        spec = self._folder.spec()
        layout = Layout.from_environment()
        context = self._context(spec, layout)
        check_disk(spec, layout, self._finished)
        for index, step in enumerate(spec.steps):
            if index in self._finished:
                continue
            self._emitter.begin_step(index)
            self._emitter.event(step_started=step.name)
            result = await module_for(step.kind).run(step.kind, context)
            self._emitter.event(result=StepResult(json=_compact(redacted(result, self._emitter.redact))))
            self._emitter.event(step_finished=step.name)

    def _context(self, spec: JobSpec, layout: Layout) -> StepContext:
        self._emitter.redact = Redactor(SecretStore.of(layout)).text
        configuration = read_configuration(layout.configuration_path)
        environment = {variable.name: variable.value for variable in spec.environment}
        check_environment(environment)
        # Also for what this process does itself: downloads honour the host's proxies and mirror.
        os.environ.update({**configuration.environment, **environment})
        return StepContext(
            layout=layout,
            configuration=configuration,
            job=self._folder,
            emitter=self._emitter,
            children=ChildRecord(self._folder),
            environment=environment,
            cancelled=self._cancelled,
        )

    def _problem_of(self, error: Exception) -> Problem:
        if isinstance(error, OSError):
            path = Path(error.filename) if isinstance(error.filename, str) else self._folder.path
            if error.errno in DISK_FULL_ERRNOS:
                error = disk_full(path, None, free_bytes(path))
            elif error.errno in READ_ONLY_ERRNOS:
                error = not_writable(path, error.strerror or str(error))
            else:
                error = JobProblem("io-error", f"{path}: {error.strerror or error}")
        if isinstance(error, ProblemError):
            return Problem(error.code, error.message, error.remedy, error.tail)
        text = f"{type(error).__name__}: {error}"
        return Problem("internal-error", f"the step broke: {text[:300]}", f"see {self._folder.log_path} on the host")

    def _end(self, state: JobState, problem: Problem | None) -> int:
        self._reserve.unlink(missing_ok=True)
        if problem is not None:
            self._emitter.event(problem=problem)
        self._emitter.event(state=state)
        return 0


def _compact(result: dict[str, object]) -> str:
    import json

    return json.dumps(result, ensure_ascii=False, separators=(",", ":"))


def finished_steps(events: Sequence[JobEvent]) -> frozenset[int]:
    """Indices of the steps that an earlier attempt has finished."""
    return frozenset(event.step_index for event in events if event.step_finished is not None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
