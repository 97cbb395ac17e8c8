"""cmake on <sources>/<source_key>; the named binaries end in <engines_dir>/<install_key>/bin.

Built in <install_key>.build, which a killed attempt leaves to the next one (so it goes on compiling where it
stopped) and a failed one does not. A source that holds the programs ready (a release archive) is not built: they are
copied. What a llama-server lists as its options is kept as "flags".
Result: {"changed": bool, "path": ..., "install": install.json}.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from fleet_agent.jobs.errors import JobProblem, SpecProblem
from fleet_agent.jobs.model import CmakeBuildStep
from fleet_agent.problem import ProblemError
from fleet_agent.steps.capabilities import read_flags
from fleet_agent.steps.context import ChildResult, StepContext
from fleet_agent.steps.install import Install, check_key, locked
from fleet_agent.steps.programs import copy_companions, copy_programs, find_programs, make_startable
from fleet_agent.steps.source_archive import version_of

STALL_SECONDS = 3600.0  # one CUDA file of llama.cpp can compile for many minutes and print nothing
OPTION = re.compile(r"-D[A-Za-z_][A-Za-z0-9_]*(:[A-Z]+)?=[^\0\n]*")
TARGET = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
NINJA_PROGRESS = re.compile(r"^\[(\d+)/(\d+)\]")
MAKE_PROGRESS = re.compile(r"^\[\s*(\d+)%\]")


def check(step: CmakeBuildStep) -> None:
    check_key(step.install_key, "install key")
    check_key(step.source_key, "source key")
    for option in step.options:
        if not OPTION.fullmatch(option):
            raise SpecProblem(f"{option!r} is no CMake definition", "options are written as -DNAME=VALUE")
    if not step.targets:
        raise SpecProblem(f"build {step.install_key!r} names no target")
    for target in step.targets:
        if not TARGET.fullmatch(target):
            raise SpecProblem(f"{target!r} is no target")


def configure_argv(cmake: str, step: CmakeBuildStep, source: str, build: str) -> list[str]:
    generator = ["-G", "Ninja"] if step.ninja else []
    return [cmake, *generator, "-S", source, "-B", build, *step.options]


def build_argv(cmake: str, step: CmakeBuildStep, build: str) -> list[str]:
    jobs = step.parallel or os.cpu_count() or 1
    return [cmake, "--build", build, "--config", "Release", "-j", str(jobs), "--target", *step.targets]


def parse_progress(line: str) -> tuple[int, int] | None:
    """(done, total) of a line of ninja ("[12/230] ...") or make ("[  5%] ...", of 100); None for another line."""
    if found := NINJA_PROGRESS.match(line):
        return int(found[1]), int(found[2])
    if found := MAKE_PROGRESS.match(line):
        return int(found[1]), 100
    return None


async def run(step: CmakeBuildStep, context: StepContext) -> dict[str, Any]:
    install = Install.at(step.install_key, step.backend, step.version, context.layout.engines_dir)
    async with locked(context, step.install_key):
        if install.present:
            return install.result(changed=False)
        try:
            await _build(step, install, context)
        except (ProblemError, OSError):
            install.clean()
            raise
        install.clean()
        return install.result(changed=True)


async def _build(step: CmakeBuildStep, install: Install, context: StepContext) -> None:
    source = context.layout.sources_dir / step.source_key
    if not (source / "CMakeLists.txt").is_file():
        if await _take_ready(step, source, install, context):
            return
        raise JobProblem("source-missing", f"{source} has no CMakeLists.txt", "the step that fetches it comes first")
    cmake = str(context.tool("cmake"))
    install.build.mkdir(parents=True, exist_ok=True)
    configured = await context.run_child(
        configure_argv(cmake, step, str(source), str(install.build)), stall_seconds=STALL_SECONDS
    )
    if configured.exit_code != 0:
        raise _configure_problem(context, configured, install)
    built = await context.run_child(
        build_argv(cmake, step, str(install.build)), stall_seconds=STALL_SECONDS, on_line=_follow(context)
    )
    if built.exit_code != 0:
        remedy = "`Killed` means out of memory: build with fewer jobs"
        raise context.child_failed("cmake --build", built, install.final, "build-failed", remedy)
    await context.in_thread(_collect, step, install)
    await _finish(step, source, install, context, step.targets, {"cmake": list(step.options)})


async def _take_ready(step: CmakeBuildStep, source: Path, install: Install, context: StepContext) -> bool:
    """Whether the source has programs instead of code; an archive may lack some of the targets."""
    folder = await context.in_thread(_ready_programs, source, step.targets)
    if folder is None:
        return False
    names = tuple(target for target in step.targets if os.access(folder / target, os.X_OK))
    shutil.rmtree(install.staging, ignore_errors=True)
    await context.in_thread(copy_programs, folder, names, install.staging)
    launchers = await make_startable(install.staging, names, context)
    await _finish(step, source, install, context, names, {"ready": True, "launchers": launchers})
    return True


def _ready_programs(source: Path, targets: tuple[str, ...]) -> Path | None:
    return next((folder for target in targets if (folder := find_programs(source, (target,))) is not None), None)


async def _finish(
    step: CmakeBuildStep,
    source: Path,
    install: Install,
    context: StepContext,
    names: tuple[str, ...],
    options: dict[str, Any],
) -> None:
    flags = await read_flags(install.staging / "bin", names, context)
    version = step.version or version_of(source)
    final = Install.at(install.key, install.backend, version, context.layout.engines_dir)
    final.finish(options, [f"bin/{name}" for name in names], flags=list(flags))


def _follow(context: StepContext) -> Any:
    def on_line(stream: str, text: str) -> bool:
        progress = parse_progress(text)
        if progress is None:
            return False
        context.progress(*progress, "targets" if NINJA_PROGRESS.match(text) else "percent", "build")
        return True

    return on_line


def _configure_problem(context: StepContext, result: ChildResult, install: Install) -> JobProblem:
    reason = next((line for line in result.tail if line.startswith("CMake Error")), "")
    problem = context.child_failed("cmake", result, install.final, "configure-failed")
    if reason and problem.code == "configure-failed":
        return JobProblem(problem.code, f"{problem.message} ({reason})", problem.remedy, tail=problem.tail)
    return problem


def _collect(step: CmakeBuildStep, install: Install) -> None:
    """Copy the binaries into the staging folder."""
    shutil.rmtree(install.staging, ignore_errors=True)
    folder = install.staging / "bin"
    folder.mkdir(parents=True)
    for target in step.targets:
        found = _find_binary(install.build, target)
        shutil.copy2(found, folder / target)
        copy_companions(found.parent, folder)


def _find_binary(build: Path, target: str) -> Path:
    usual = build / "bin" / target
    candidates = [usual] if usual.is_file() else sorted(build.rglob(target))
    for path in candidates:
        if path.is_file() and os.access(path, os.X_OK):
            return path
    message = f"target {target} was built, but there is no program of that name"
    raise JobProblem("build-failed", message, "name targets that are programs")
