"""Finds out how good a model is, with one program in a folder that outlives the job.

Order: sizes and hashes of what is judged; the folder and its lock; the files; a lease and a server, where asked for;
the program. What the program has finished lies in the folder, so a later run of the same key goes on there.

Result: {"state_key", "outcome": what the program wrote to outcome.json, or null, "stdout", "stderr", "argv",
"server_argv", "artifacts": [{"path", "size_bytes", "sha256"}], "paused_services", "started_unix_ms",
"finished_unix_ms", "runs"}; of a file that was there already "runs" is 0.
"""

import base64
import binascii
import contextlib
import gzip
import json
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleet_agent import evaluating
from fleet_agent.configuration import INSTALL_KEY, check_environment
from fleet_agent.file_lock import file_lock
from fleet_agent.jobs.errors import JobProblem, SpecProblem
from fleet_agent.jobs.model import BenchStep, DeviceWatch, EvaluateStep, ToolRef
from fleet_agent.jobs.store import now_unix_ms
from fleet_agent.leases.store import Lease
from fleet_agent.measuring.artifacts import measured_artifacts
from fleet_agent.measuring.server import bench_server
from fleet_agent.steps.bench import as_mapping, device_lease, free_port
from fleet_agent.steps.context import ChildResult, StepContext
from fleet_agent.steps.run_tool import check_secrets

PROGRAMS = {"ask": "ask.py", "lm_eval": "lm_eval_run.py"}
MOST_REPEATS = 10
STDERR_LINES = 2000
# A label that changes with every answer would be a line each in a log.
SCORE_INTERVAL_SECONDS = 10.0
FOLDER = "evaluations"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_PLACEHOLDER = re.compile(r"\{(folder|base_url|port|part)\}")
_LARGEST_FILE_BYTES = 256 << 20


def check(step: EvaluateStep) -> None:
    if not INSTALL_KEY.match(step.state_key):
        raise SpecProblem(f"{step.state_key!r} is no name of a folder")
    if step.program and step.program not in PROGRAMS:
        raise SpecProblem(f"there is no program {step.program!r}", f"there are: {', '.join(PROGRAMS)}")
    if not step.program and not step.tool.install_key:
        raise SpecProblem("an evaluation needs a program, or a tool of an install")
    for tool in (step.tool, *([step.server.tool] if step.server is not None else [])):
        _check_tool(tool)
    check_secrets(step.secret_environment)
    variables = [*step.environment, *(step.server.environment if step.server is not None else ())]
    check_environment({variable.name: variable.value for variable in variables})
    names = [*(file.name for file in step.files), *step.removes, *([step.produces] if step.produces else [])]
    for name in names:
        if not _NAME.match(name):
            raise SpecProblem(f"{name!r} is no plain file name")
    if step.server is not None and not step.server.readiness_path.startswith("/"):
        raise SpecProblem("the server of an evaluation needs a readiness path")
    if any(not path.startswith("/") for path in step.artifact_paths):
        raise SpecProblem("artifact_paths are absolute paths on the host")
    if not 0 <= step.repeats <= MOST_REPEATS or step.stall_seconds < 0:
        raise SpecProblem("a limit is out of range")


def _check_tool(tool: ToolRef) -> None:
    key, name = tool.install_key, tool.name
    if (key or name) and (not INSTALL_KEY.match(key) or not name or name.startswith("/") or ".." in name.split("/")):
        raise SpecProblem(f"tool {name!r} of install {key!r} is not a path inside an install")


async def run(step: EvaluateStep, context: StepContext) -> dict[str, Any]:
    artifacts = await context.in_thread(measured_artifacts, step.artifact_paths, context)
    folder = context.layout.machine_dir / FOLDER / step.state_key
    lock = file_lock(folder.with_name(f".{step.state_key}.lock"), context.cancelled)
    await context.in_thread(lock.__enter__)
    try:
        await context.in_thread(_write_files, step, folder)
        return {"state_key": step.state_key, "artifacts": artifacts, **await _Evaluation(step, context, folder).run()}
    finally:
        lock.__exit__(None, None, None)


def _write_files(step: EvaluateStep, folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in step.files:
        part = folder / f"{file.name}.part"
        try:
            content = gzip.decompress(base64.b64decode(file.content_gzip, validate=True))
        except (binascii.Error, OSError, EOFError) as error:
            raise JobProblem("bad-file", f"the content of {file.name} cannot be read: {error}") from None
        if len(content) > _LARGEST_FILE_BYTES:
            raise JobProblem("bad-file", f"{file.name} is larger than {_LARGEST_FILE_BYTES >> 20} MiB")
        part.write_bytes(content)
        part.replace(folder / file.name)


class _Evaluation:
    """What happens in the locked folder."""

    def __init__(self, step: EvaluateStep, context: StepContext, folder: Path) -> None:
        self._step, self._context, self._folder = step, context, folder
        self._values = {"folder": str(folder), "part": str(folder / f"{step.produces}.part")}
        self._stderr: list[str] = []
        self._failed: Mapping[str, str] = {}
        self._score, self._scored_seconds = "", time.monotonic()

    async def run(self) -> dict[str, Any]:
        step, started = self._step, now_unix_ms()
        common: dict[str, Any] = {
            "outcome": None,
            "stdout": "",
            "stderr": "",
            "argv": [],
            "server_argv": [],
            "paused_services": [],
        }
        if step.produces and (self._folder / step.produces).is_file():
            self._context.log(f"{step.produces} is there already")
            return {**common, "runs": 0, "started_unix_ms": started, "finished_unix_ms": started}
        (self._folder / "outcome.json").unlink(missing_ok=True)
        async with contextlib.AsyncExitStack() as stack:
            lease: Lease | None = None
            if step.takes_devices:
                lease = await stack.enter_async_context(device_lease(self._of_lease(), self._context))
            server_argv = await self._start_server(stack)
            started = now_unix_ms()
            argv, child, runs = await self._until_done()
        if step.produces:
            (self._folder / f"{step.produces}.part").replace(self._folder / step.produces)
        outcome = self._folder / "outcome.json"
        result = {
            "outcome": json.loads(outcome.read_text(encoding="utf-8")) if outcome.is_file() else None,
            "stdout": "" if step.program else child.stdout,
            "stderr": "\n".join(self._stderr),
            "argv": argv,
            "server_argv": server_argv,
            "paused_services": list(lease.paused_services) if lease is not None else [],
            "started_unix_ms": started,
            "finished_unix_ms": now_unix_ms(),
            "runs": runs,
        }
        for name in step.removes:
            (self._folder / name).unlink(missing_ok=True)
        return result

    def _of_lease(self) -> BenchStep:
        watch = DeviceWatch(gpu_indices=self._step.gpu_indices)
        return BenchStep(watch=watch, pause_services=self._step.pause_services)

    async def _start_server(self, stack: contextlib.AsyncExitStack) -> list[str]:
        server = self._step.server
        if server is None:
            return []
        port = free_port()
        self._values |= {"port": str(port), "base_url": f"http://127.0.0.1:{port}"}
        program = self._context.tool(server.tool.name, server.tool.install_key)
        argv = [str(program), *(self._filled(word) for word in server.arguments)]
        await stack.enter_async_context(bench_server(server, argv, port, self._context))
        return argv

    async def _until_done(self) -> tuple[list[str], ChildResult, int]:
        """Runs the program until it says what it must say; with exit code 0 and without it, it dropped its output."""
        argv = self._argv()
        for attempt in range(1, self._step.repeats + 2):
            self._stderr.clear()
            child = await self._context.run_child(
                argv,
                environment=as_mapping(self._step.environment),
                private_environment=self._context.secrets(self._step.secret_environment),
                stall_seconds=self._step.stall_seconds,
                capture=True,
                on_line=self._heard,
            )
            if child.exit_code != 0:
                raise self._problem(child)
            wanted = self._step.required_text
            if not wanted or wanted in child.stdout or any(wanted in line for line in self._stderr):
                return argv, child, attempt
            self._context.log(f"run {attempt} ended well without printing {wanted!r}: it is no result")
        message = (
            f"{Path(argv[0]).name} ended {self._step.repeats + 1} times without printing {self._step.required_text!r}"
        )
        raise JobProblem("output-incomplete", message, "repeat the command", tail=tuple(self._stderr[-20:]))

    def _problem(self, child: ChildResult) -> JobProblem:
        if self._failed:
            return JobProblem(self._failed["code"], self._failed["message"], self._failed["remedy"])
        name = self._step.program or self._step.tool.name
        return self._context.child_failed(name, child, self._context.layout.machine_dir, "tool-failed")

    def _argv(self) -> list[str]:
        step = self._step
        arguments = [self._filled(word) for word in step.arguments]
        tool = str(self._context.tool(step.tool.name, step.tool.install_key)) if step.tool.install_key else ""
        if not step.program:
            return [tool, *arguments]
        program = Path(str(evaluating.__file__)).parent / PROGRAMS[step.program]
        return [tool or sys.executable, "-u", str(program), *arguments]

    def _heard(self, stream: str, line: str) -> bool:
        if stream == "stderr":
            if len(self._stderr) < STDERR_LINES:
                self._stderr.append(line)
            return False
        if self._step.program and line.startswith("{"):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                self._understand(json.loads(line))
        return True

    def _understand(self, said: Mapping[str, Any]) -> None:
        if "failed" in said:
            self._failed = said["failed"]
        elif "progress" in said:
            now = said["progress"]
            done, total = int(now["done"]), int(now["total"])
            if done == total or time.monotonic() - self._scored_seconds >= SCORE_INTERVAL_SECONDS:
                self._scored_seconds = time.monotonic()
                self._score = f"{100 * int(now['correct']) / done:.1f} % right so far"
                self._score += f", {now['cut_off']} cut off" if now["cut_off"] else ""
            self._context.progress(done, total, "questions", self._score)

    def _filled(self, word: str) -> str:
        return _PLACEHOLDER.sub(lambda found: self._values.get(found[1], found[0]), word)
