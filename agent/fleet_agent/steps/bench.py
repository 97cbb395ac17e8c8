"""Measures with one program while nothing else uses the device.

Order: sizes and hashes of what is measured, or a model made up for it; the lease (other benches are waited for);
services in the way paused; idle; the server of this measurement, if any; warm-up until its wall time is stable; the
run, with a look at the devices every second. A run that somebody disturbed is ended, thrown away, said so, and
repeated.

Result: {"outcome": "measured" | "contaminated", "cause": of the last void run, "stdout", "stderr", "files": {"result",
"progress"}, "started_unix_ms", "finished_unix_ms", "samples": [looks, see measuring/watch.py], "marks": [[seconds since
the start, line]], "warmup_seconds": [...], "void_runs": [{"cause", "seconds", "samples"}], "paused_services",
"artifacts": [{"path", "size_bytes", "sha256"}], "waited_seconds", "argv", "server_argv", "runner_cpu_seconds": what
this very process used of the CPU during the run}.
"""

import asyncio
import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fleet_agent.configuration import INSTALL_KEY, check_environment
from fleet_agent.jobs.errors import SpecProblem
from fleet_agent.jobs.model import BenchStep, EnvironmentVariable, ToolRef
from fleet_agent.jobs.store import now_unix_ms
from fleet_agent.leases.store import Lease, LeaseStore
from fleet_agent.measuring.artifacts import measured_artifacts
from fleet_agent.measuring.corpus import served_corpus
from fleet_agent.measuring.generated_model import check as check_generated
from fleet_agent.measuring.generated_model import generated_model
from fleet_agent.measuring.idle import wait_until_idle
from fleet_agent.measuring.server import bench_server, port_owner
from fleet_agent.measuring.services import busy_with, in_the_way, service_records, wait_until_paused
from fleet_agent.measuring.waiting import Reminder
from fleet_agent.measuring.watch import DeviceLooker, Sampler
from fleet_agent.process import identity_of, tree_members
from fleet_agent.steps.context import ChildResult, StepContext
from fleet_agent.steps.run_tool import check_secrets

STDERR_LINES = 4000
MOST_REPEATS = 10
LEASE_POLL_SECONDS = 0.5
DEFAULT_WARMUP_TOLERANCE = 0.1
# A small model makes hundreds of lines a second; every event costs the CPU that is measured.
SHOWN_EVERY_SECONDS = 1.0
PLACEHOLDER = re.compile(r"\{(port|base_url|book_url|result_file|progress_file|model_file|seed)\}")
_SEEDS = 1 << 31  # numpy's generators take no larger one
_COUNT = re.compile(r"(\d+)/(\d+)")


def check(step: BenchStep) -> None:
    tools = [step.tool, *([step.server.tool] if step.server is not None else [])]
    for tool in tools:
        _check_tool(tool)
    check_secrets(step.secret_environment)
    variables = [*step.environment, *(step.server.environment if step.server is not None else ())]
    check_environment({variable.name: variable.value for variable in variables})
    arguments = [*step.arguments, *step.warmup_arguments, *(step.server.arguments if step.server is not None else ())]
    if any("\0" in argument for argument in arguments):
        raise SpecProblem("an argument holds a NUL")
    if any(not path.startswith("/") for path in step.artifact_paths):
        raise SpecProblem("artifact_paths are absolute paths on the host")
    if step.server is not None and not step.server.readiness_path.startswith("/"):
        raise SpecProblem("the server of a bench needs a readiness path")
    if step.generated is not None:
        check_generated(step.generated)
    if not 0 <= step.repeats <= MOST_REPEATS:
        raise SpecProblem(f"a void run is repeated {MOST_REPEATS} times at most")
    watch = step.watch
    if min(watch.idle_wait_seconds, watch.foreign_cpu_percent, watch.interval_seconds, step.stall_seconds) < 0:
        raise SpecProblem("a limit is negative")


def _check_tool(tool: ToolRef) -> None:
    key, name = tool.install_key, tool.name
    if not INSTALL_KEY.match(key) or not name or name.startswith("/") or ".." in name.split("/"):
        raise SpecProblem(f"tool {name!r} of install {key!r} is not a path inside an install")


async def run(step: BenchStep, context: StepContext) -> dict[str, Any]:
    artifacts = await context.in_thread(measured_artifacts, step.artifact_paths, context)
    async with contextlib.AsyncExitStack() as stack:
        values: dict[str, str] = {}
        if step.generated is not None:
            path = await stack.enter_async_context(generated_model(step.generated, context))
            values["model_file"] = str(path)
            artifacts.append({"path": path.name, "size_bytes": path.stat().st_size, "sha256": ""})
        lease = await stack.enter_async_context(device_lease(step, context))
        result = await _Measurement(step, context, values).run()
    return {**result, "artifacts": artifacts, "paused_services": list(lease.paused_services)}


@contextlib.asynccontextmanager
async def device_lease(step: BenchStep, context: StepContext) -> AsyncIterator[Lease]:
    """The device is ours inside the block; whoever kills us ends that, since a lease lives with its holder."""
    store = LeaseStore.of(context.layout)
    holder = identity_of(os.getpid())
    assert holder is not None
    title = context.job.spec().title or context.job.job_id
    gpus = step.watch.gpu_indices
    lease = Lease(context.job.job_id, title, holder, now_unix_ms(), gpus, service=step.service)
    reminder = Reminder()
    while True:
        names = in_the_way(service_records(context.layout.services_dir), gpus, step.service)
        if names and not step.pause_services:
            raise busy_with(names)
        lease = replace(lease, paused_services=tuple(names), since_unix_ms=now_unix_ms())
        blocking = store.acquire(lease)
        if blocking is None:
            break
        if reminder.due((blocking.owner,)):
            context.log(f"waiting for {blocking.describe()}")
            context.progress(0, None, "s", f"waiting for {blocking.describe()}")
        await asyncio.sleep(LEASE_POLL_SECONDS)
    try:
        if lease.paused_services:
            context.log(f"pausing {', '.join(lease.paused_services)}")
            await wait_until_paused(context, store, lease.paused_services)
        yield lease
    finally:
        store.release(lease.owner)


@dataclass
class _Run:
    """One run of the program."""

    child: ChildResult
    started_unix_ms: int
    seconds: float
    sampler: Sampler
    cpu_seconds: float
    stderr: list[str] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)


class _Measurement:
    """What happens under the lease."""

    def __init__(self, step: BenchStep, context: StepContext, values: Mapping[str, str]) -> None:
        self._step = step
        self._context = context
        self._values = dict(values)
        self._void: list[dict[str, Any]] = []
        self._waited = 0.0
        self._warmups: list[float] = []
        self._server_argv: list[str] = []

    async def run(self) -> dict[str, Any]:
        step, context = self._step, self._context
        with contextlib.ExitStack() as stack:
            looker = stack.enter_context(DeviceLooker(step.watch, self._measured_pids, self._idle_pids))
            self._waited += await wait_until_idle(context, looker, step.watch)
            async with contextlib.AsyncExitStack() as running:
                if any("{book_url}" in word for word in step.arguments):
                    self._values["book_url"] = stack.enter_context(served_corpus())
                await self._start_server(running)
                return await self._until_clean(looker)

    async def _start_server(self, running: contextlib.AsyncExitStack) -> None:
        server = self._step.server
        if server is None:
            return
        port = free_port()
        self._values |= {"port": str(port), "base_url": f"http://127.0.0.1:{port}"}
        program = self._context.tool(server.tool.name, server.tool.install_key)
        self._server_argv = [str(program), *(self._filled(word) for word in server.arguments)]
        await running.enter_async_context(bench_server(server, self._server_argv, port, self._context))

    async def _until_clean(self, looker: DeviceLooker) -> dict[str, Any]:
        await self._warm_up()
        for attempt in range(self._step.repeats + 1):
            if attempt:
                self._waited += await wait_until_idle(self._context, looker, self._step.watch)
            done = await self._once(attempt + 1, looker)
            if done.sampler.cause is None:
                if done.child.exit_code != 0:
                    name = self._step.tool.name
                    raise self._context.child_failed(name, done.child, self._context.layout.machine_dir, "tool-failed")
                return self._measured(done, attempt + 1)
            self._note_void(done, attempt + 1)
        return {"outcome": "contaminated", "cause": self._void[-1]["cause"], **self._common()}

    def _note_void(self, done: _Run, attempt: int) -> None:
        cause = done.sampler.cause or ""
        looks = [look.document() for look in done.sampler.looks]
        self._void.append({"attempt": attempt, "cause": cause, "seconds": round(done.seconds, 3), "samples": looks})
        left = self._step.repeats + 1 - attempt
        what = f"repeating it ({left} left)" if left else "it was the last one"
        self._context.log(f"run {attempt} is void: {cause}; {what}")
        self._context.progress(attempt, self._step.repeats + 1, "runs", f"run {attempt} is void: {cause}")

    async def _warm_up(self) -> None:
        """Until two runs take the same time: files are in the page cache then, clocks are up, kernels are compiled."""
        if not self._step.warmup_arguments:
            return
        program = self._context.tool(self._step.tool.name, self._step.tool.install_key)
        for number in range(max(self._step.warmup_limit, 1)):
            self._context.progress(number, self._step.warmup_limit, "runs", "warm-up")
            started = time.monotonic()
            argv = [program, *(self._filled(word) for word in self._step.warmup_arguments)]
            done = await self._child(argv, lambda stream, line: True)
            if done.exit_code != 0:
                name = f"{self._step.tool.name} (warm-up)"
                raise self._context.child_failed(name, done, self._context.layout.machine_dir, "tool-failed")
            self._warmups.append(round(time.monotonic() - started, 4))
            if is_stable(self._warmups):
                return

    async def _once(self, attempt: int, looker: DeviceLooker) -> _Run:
        """One run to its end, or until it is spoiled: then its tree is ended at once."""
        for name in ("result", "progress"):
            path = self._context.job.path / f"{name}-{attempt}"
            path.unlink(missing_ok=True)
            self._values[f"{name}_file"] = str(path)
        self._values["seed"] = str(now_unix_ms() % _SEEDS)
        program = self._context.tool(self._step.tool.name, self._step.tool.install_key)
        argv = [program, *(self._filled(word) for word in self._step.arguments)]
        loop = asyncio.get_running_loop()
        looker.started = started = time.monotonic()
        stderr: list[str] = []
        marks: list[tuple[float, str]] = []
        task = asyncio.ensure_future(self._child(argv, self._listener(started, stderr, marks)))

        def end_run(cause: str) -> None:
            loop.call_soon_threadsafe(task.cancel)

        sampler = Sampler(looker, end_run)
        started_unix_ms = now_unix_ms()
        used = time.process_time()
        sampler.start()
        try:
            child = await task
        except asyncio.CancelledError:
            if sampler.cause is None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
                raise
            child = ChildResult(-signal.SIGTERM)
        finally:
            seconds = time.monotonic() - started
            await asyncio.to_thread(sampler.stop)
        return _Run(child, started_unix_ms, seconds, sampler, time.process_time() - used, stderr, marks)

    def _listener(self, started: float, stderr: list[str], marks: list[tuple[float, str]]) -> Any:
        shown = -SHOWN_EVERY_SECONDS

        def heard(stream: str, line: str) -> bool:
            nonlocal shown
            if stream == "stderr":
                if len(stderr) < STDERR_LINES:
                    stderr.append(line)
                if self._step.mark and self._step.mark in line:
                    seconds = time.monotonic() - started
                    marks.append((round(seconds, 4), line))
                    if seconds - shown >= SHOWN_EVERY_SECONDS:
                        shown = seconds
                        self._show(line)
                    return True  # told as progress, and whole in the result
            return False

        return heard

    def _show(self, mark: str) -> None:
        count = _COUNT.search(mark)
        label = mark.partition(": ")[2].strip() or mark.strip()
        self._context.progress(int(count[1]) if count else 0, int(count[2]) if count else None, "tests", label[:120])

    async def _child(self, argv: list[object], on_line: Any) -> ChildResult:
        environment = as_mapping(self._step.environment)
        private = self._context.secrets(self._step.secret_environment)
        if (
            "book_url" in self._values
        ):  # what the client caches of it goes with the job; the model cache stays the host's
            home = self._context.job.path / "home"
            home.mkdir(exist_ok=True)
            private |= {"HOME": str(home), "HF_HOME": str(self._context.layout.hf_home)}
        return await self._context.run_child(
            argv,
            environment=environment,
            private_environment=private,
            stall_seconds=self._step.stall_seconds,
            capture=True,
            on_line=on_line,
        )

    def _measured(self, done: _Run, attempt: int) -> dict[str, Any]:
        files = {}
        for name in ("result", "progress"):
            path = Path(self._values[f"{name}_file"])
            if path.is_file():
                files[name] = path.read_text(encoding="utf-8", errors="replace")
        program = self._context.tool(self._step.tool.name, self._step.tool.install_key)
        return {
            "outcome": "measured",
            "attempt": attempt,
            "argv": [str(program), *(self._filled(word) for word in self._step.arguments)],
            "stdout": done.child.stdout,
            "stderr": "\n".join(done.stderr),
            "files": files,
            "started_unix_ms": done.started_unix_ms,
            "finished_unix_ms": done.started_unix_ms + int(done.seconds * 1000),
            "samples": [look.document() for look in done.sampler.looks],
            "marks": [list(mark) for mark in done.marks],
            "runner_cpu_seconds": round(done.cpu_seconds, 3),
            **self._common(),
        }

    def _common(self) -> dict[str, Any]:
        return {
            "server_argv": self._server_argv,
            "warmup_seconds": self._warmups,
            "waited_seconds": round(self._waited, 3),
            "void_runs": self._void,
        }

    def _filled(self, word: str) -> str:
        return PLACEHOLDER.sub(lambda found: self._values.get(found[1], found[0]), word)

    def _measured_pids(self) -> Collection[int]:
        """Pids that belong to the measurement although they are not our children: the server that is measured."""
        owner = port_owner(self._step.measured_port) if self._step.measured_port else None
        found = set() if owner is None else {owner}
        return found if self._step.service_is_idle else found | self._service_pids()

    def _idle_pids(self) -> Collection[int]:
        """Pids that may hold the device's memory, and no more."""
        return self._service_pids() if self._step.service_is_idle else ()

    def _service_pids(self) -> set[int]:
        records = service_records(self._context.layout.services_dir) if self._step.service else []
        named = [record.process for record in records if record.spec.name == self._step.service]
        return {member.pid for process in named if process is not None for member in tree_members(process)}


def is_stable(seconds: list[float], tolerance: float = DEFAULT_WARMUP_TOLERANCE) -> bool:
    """Whether the last two agree."""
    return len(seconds) >= 2 and abs(seconds[-1] - seconds[-2]) <= tolerance * max(seconds[-2:])


def as_mapping(variables: tuple[EnvironmentVariable, ...]) -> Mapping[str, str]:
    return {variable.name: variable.value for variable in variables}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
