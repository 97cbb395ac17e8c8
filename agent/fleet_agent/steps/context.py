"""What a step gets to work with: paths, settings, a way to say how far it is, and a way to run programs."""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

from fleet_agent.causes.installs import INSTALL_CAUSES
from fleet_agent.causes.recognise import find_cause, shown_lines
from fleet_agent.configuration import AgentConfiguration, child_environment, resolve_tool
from fleet_agent.jobs.children import MARKER_NAME, ChildRecord, marker_value
from fleet_agent.jobs.emitter import Emitter
from fleet_agent.jobs.errors import JobProblem, Stopped, disk_full
from fleet_agent.jobs.model import SecretVariable
from fleet_agent.jobs.store import JobFolder
from fleet_agent.layout import Layout
from fleet_agent.process import identity_of, terminate_tree
from fleet_agent.secrets import SecretStore
from fleet_agent.steps.output import LineSplitter, free_bytes

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

CHILD_GRACE_SECONDS = 10.0
DRAIN_SECONDS = 2.0
TAIL_LINES = 300  # a compiler's error may be followed by what other compilers still print
CAPTURE_BYTES = 16 << 20


@dataclass
class ChildResult:
    """How a program ended. `stdout` is filled with capture only; `tail` holds its last lines of both streams."""

    exit_code: int
    stdout: str = ""
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))

    def says(self, *needles: str) -> bool:
        return any(needle in line for line in self.tail for needle in needles)


@dataclass(frozen=True)
class StepContext:
    """One context a job; the emitter knows which step is running."""

    layout: Layout
    configuration: AgentConfiguration
    job: JobFolder
    emitter: Emitter
    children: ChildRecord
    environment: Mapping[str, str]
    cancelled: threading.Event

    def secrets(self, variables: Sequence[SecretVariable]) -> dict[str, str]:
        """The variables with the secrets of this host that they are for. Raises ProblemError for one that is gone."""
        store = SecretStore.of(self.layout)
        return {variable.name: store.read(variable.secret) for variable in variables}

    def log(self, text: str) -> None:
        self.emitter.log(text)

    def progress(self, done: int, total: int | None, unit: str, label: str = "") -> None:
        self.emitter.progress(done, total, unit, label)

    def tool(self, name: str, install_key: str = "") -> Path:
        """Raises ToolError where the tool is not allowed or not there."""
        return resolve_tool(install_key, name, self.layout, self.configuration)

    async def in_thread(
        self, work: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Result:
        """Run blocking work; it must look at `cancelled`. Cancelling waits until the thread has ended."""
        task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self.cancelled.set()
            with contextlib.suppress(Exception):
                await task
            raise
        except Stopped:
            raise asyncio.CancelledError from None

    async def run_child(
        self,
        argv: Sequence[object],
        *,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        private_environment: Mapping[str, str] | None = None,
        stall_seconds: float = 0.0,
        deadline_seconds: float = 0.0,
        capture: bool = False,
        on_line: Callable[[str, str], bool] | None = None,
        feed: Callable[[asyncio.StreamWriter], Coroutine[None, None, None]] | None = None,
    ) -> ChildResult:
        """Run a program (words and paths) to its end and stream its output as log lines.

        feed(stdin) writes to the program's standard input while it runs; without it there is none.

        environment: allowlisted variables; private_environment: the step's own, not from the wire.
        on_line(stream, text) sees every line first and returns True where it is not to be logged.
        Raises JobProblem "stalled" or "deadline" after ending the tree; when cancelled, the tree is ended, too.
        """
        words = [str(word) for word in argv]
        self.log("$ " + " ".join(words))
        marker = marker_value(self.job, self.emitter.step_index)
        variables = child_environment(self.configuration, {**self.environment, **(environment or {})})
        variables.update(private_environment or {})
        variables[MARKER_NAME] = marker
        async with self._child(words, cwd, variables, marker, feed is not None) as process:
            output = _Output(self.emitter, capture, on_line)
            readers = [
                asyncio.ensure_future(output.follow(process.stdout, "stdout")),
                asyncio.ensure_future(output.follow(process.stderr, "stderr")),
            ]
            feeder = asyncio.ensure_future(feed(process.stdin)) if feed is not None and process.stdin else None
            try:
                exit_code = await self._wait(process, output, words[0], stall_seconds, deadline_seconds)
                # A grandchild that stays (a daemon) may hold the pipes open for ever.
                await asyncio.wait(readers, timeout=DRAIN_SECONDS)
            finally:
                others = [*readers, *([feeder] if feeder is not None else [])]
                for reader in others:
                    reader.cancel()
                await asyncio.gather(*others, return_exceptions=True)
            output.result.exit_code = exit_code
            output.result.stdout = output.captured()
            return output.result

    @contextlib.asynccontextmanager
    async def _child(
        self, words: list[str], cwd: Path | None, variables: dict[str, str], marker: str, fed: bool = False
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                cwd=cwd,
                env=variables,
                stdin=asyncio.subprocess.PIPE if fed else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise JobProblem("tool-missing", f"cannot start {words[0]}: {error.strerror}") from None
        identity = identity_of(process.pid)
        if identity is not None:
            self.children.add(identity, marker)
        try:
            yield process
        except BaseException:
            if identity is not None:
                await asyncio.shield(terminate_tree(identity, CHILD_GRACE_SECONDS, f"{MARKER_NAME}={marker}"))
            await process.wait()
            raise
        finally:
            if identity is not None:
                self.children.remove(identity)

    async def _wait(
        self, process: asyncio.subprocess.Process, output: "_Output", name: str, stall: float, deadline: float
    ) -> int:
        started = time.monotonic()
        ended = asyncio.ensure_future(process.wait())
        try:
            while True:
                limits = []
                if stall > 0:
                    limits.append((output.last_seconds + stall, "stalled", f"{name} printed nothing for {stall:g} s"))
                if deadline > 0:
                    limits.append((started + deadline, "deadline", f"{name} did not end within {deadline:g} s"))
                now = time.monotonic()
                due = [limit for limit in limits if limit[0] <= now]
                if due:
                    raise JobProblem(due[0][1], due[0][2], "see the job's last lines; run it again with a longer limit")
                timeout = min((limit[0] - now for limit in limits), default=None)
                done, _ = await asyncio.wait([ended], timeout=timeout)
                if done:
                    return ended.result()
        finally:
            ended.cancel()

    def child_failed(self, what: str, result: ChildResult, path: Path, code: str, remedy: str = "") -> JobProblem:
        """The problem of a program that ended with an error, its cause read from what it printed.

        `code` and `remedy` are for a cause that nobody knows; where the whole output lies is always said.
        """
        if result.says("No space left on device", "Disk quota exceeded", "os error 28"):
            return disk_full(path, None, free_bytes(path))
        known = find_cause(INSTALL_CAUSES, "\n".join(result.tail))
        lines = shown_lines(result.tail, known.line if known else "")
        tail = (*lines, f"(all of it is in {self.job.events_path} on the host)")
        if known is not None:
            return JobProblem(known.code, f"{what} failed: {known.message}", known.remedy, tail=tail)
        last = lines[-1].strip() if lines else "it printed nothing"
        return JobProblem(code, f"{what} failed with exit code {result.exit_code}: {last}", remedy, tail=tail)


class _Output:
    """Collects the lines of both streams of one child."""

    def __init__(self, emitter: Emitter, capture: bool, on_line: Callable[[str, str], bool] | None) -> None:
        self.result = ChildResult(0)
        self.last_seconds = time.monotonic()
        self._emitter = emitter
        self._capture = capture
        self._on_line = on_line
        self._stdout = bytearray()

    def captured(self) -> str:
        return self._stdout.decode(errors="replace")

    async def follow(self, stream: asyncio.StreamReader | None, name: str) -> None:
        assert stream is not None
        splitter = LineSplitter()
        while block := await stream.read(1 << 16):
            self.last_seconds = time.monotonic()
            keep = self._capture and name == "stdout"
            if keep and len(self._stdout) < CAPTURE_BYTES:
                self._stdout += block[: CAPTURE_BYTES - len(self._stdout)]
            for line in splitter.feed(block):
                self._line(name, line, keep)
        for line in splitter.end():
            self._line(name, line, False)

    def _line(self, name: str, line: str, captured: bool) -> None:
        self.result.tail.append(line)
        hidden = self._on_line is not None and self._on_line(name, line)
        if not hidden and not captured:
            self._emitter.log(line, name)
