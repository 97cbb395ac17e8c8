"""A real CMake project, built by a real runner."""

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fleet_agent.jobs.errors import SpecProblem
from fleet_agent.jobs.model import CmakeBuildStep, JobSpec, JobState, Step
from fleet_agent.steps import cmake_build
from fleet_agent.steps.cmake_build import build_argv, configure_argv, parse_progress
from support.agent_jobs import Agent, kill, problem_of, result_of, state_of

needs_compiler = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("cc") is None or shutil.which("c++") is None,
    reason="needs cmake and a C++ compiler",
)
PROJECT = """
cmake_minimum_required(VERSION 3.14)
project(tiny C CXX)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_executable(tiny-server main.c)
add_executable(tiny-bench main.c)
add_executable(not-wanted broken.c)
target_compile_definitions(tiny-server PRIVATE ANSWER=${ANSWER})
"""
MAIN = '#include <stdio.h>\n#ifndef ANSWER\n#define ANSWER 1\n#endif\nint main(void) { printf("%d\\n", ANSWER); }\n'


def make_source(agent: Agent, main: str = MAIN, project: str = PROJECT) -> None:
    source = agent.layout.sources_dir / "tiny"
    source.mkdir(parents=True)
    (source / "CMakeLists.txt").write_text(project)
    (source / "main.c").write_text(main)
    (source / "broken.c").write_text("#error never built\n")


def build_step(**more: object) -> Step:
    given: dict[str, object] = {"options": ("-DANSWER=42",), "targets": ("tiny-server", "tiny-bench"), **more}
    build = CmakeBuildStep("tiny", "tiny-1-abc", "tiny", "1", **given)  # type: ignore[arg-type]
    return Step("build", cmake_build=build)


@needs_compiler
@pytest.mark.parametrize("ninja", [False, True])
async def test_the_named_binaries_are_installed_whole(agent: Agent, ninja: bool) -> None:
    if ninja and shutil.which("ninja") is None:
        pytest.skip("needs ninja")
    make_source(agent)
    events = await agent.run(build_step(ninja=ninja))
    result = result_of(events)
    install = agent.layout.engines_dir / "tiny-1-abc"
    assert (result["changed"], result["path"]) == (True, str(install))
    printed = await asyncio.to_thread(subprocess.check_output, [install / "bin/tiny-server"])
    assert printed == b"42\n"
    record = json.loads((install / "install.json").read_text())
    assert record["binaries"] == ["bin/tiny-server", "bin/tiny-bench"]
    assert (record["backend"], record["version"], record["options"]) == ("tiny", "1", {"cmake": ["-DANSWER=42"]})
    assert sorted(path.name for path in install.iterdir()) == ["bin", "install.json"]
    assert not (agent.layout.engines_dir / "tiny-1-abc.build").exists()
    progress = [event.progress for event in events if event.progress is not None]
    assert progress[-1].done == progress[-1].total
    assert result_of(await agent.run(build_step(ninja=ninja), job_id="again"))["changed"] is False


@needs_compiler
async def test_a_failed_build_leaves_nothing_and_shows_the_compilers_words(agent: Agent) -> None:
    make_source(agent, "int main(void) { return missing; }\n")
    events = await agent.run(build_step())
    code, message, remedy = problem_of(events)
    assert (code, bool(remedy)) == ("build-failed", True)
    assert any("missing" in event.log.text for event in events if event.log is not None)
    assert [path.name for path in agent.layout.engines_dir.iterdir() if path.name.startswith("tiny")] == []
    assert "exit code" in message


@needs_compiler
async def test_a_configuration_that_fails_names_the_reason(agent: Agent) -> None:
    make_source(agent, project='cmake_minimum_required(VERSION 3.14)\nproject(x C)\nmessage(FATAL_ERROR "no luck")\n')
    assert problem_of(await agent.run(build_step()))[0] == "configure-failed"


@needs_compiler
async def test_no_compiler_is_one_clear_problem(agent: Agent) -> None:
    make_source(agent)
    step = build_step(options=("-DANSWER=1", "-DCMAKE_C_COMPILER=/nowhere/cc"))
    code, _, remedy = problem_of(await agent.run(step))
    assert code == "compiler-missing"
    assert "install" in remedy


async def test_without_its_source_it_says_so(agent: Agent) -> None:
    assert problem_of(await agent.run(build_step()))[0] == "source-missing"


@needs_compiler
async def test_a_killed_build_goes_on_where_it_stopped(agent: Agent, tmp_path: Path) -> None:
    """bench.c is compiled by the first runner; the second one only has to compile what was under way."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    project = f"""
cmake_minimum_required(VERSION 3.14)
project(tiny C)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${{CMAKE_BINARY_DIR}}/bin)
add_executable(tiny-bench main.c)
add_custom_command(OUTPUT gate.h COMMAND cat {gate} COMMAND ${{CMAKE_COMMAND}} -E touch gate.h)
add_executable(tiny-server main.c gate.h)
add_dependencies(tiny-server tiny-bench)
"""
    make_source(agent, project=project)
    await agent.supervisor.submit(JobSpec("job", steps=(build_step(options=(), parallel=1),)))
    runner = await agent.runner("job")
    writer = await asyncio.to_thread(gate.open, "w")  # opens once the build has come to the gate
    made = agent.layout.engines_dir / "tiny-1-abc.build/bin/tiny-bench"
    before = made.stat().st_mtime_ns
    await kill(runner)
    second = asyncio.create_task(agent.finish("job"))
    await agent.until("job", lambda event: event.state is JobState.RUNNING and event.sequence > 2)
    writer.close()
    again = await asyncio.to_thread(gate.open, "w")
    assert made.stat().st_mtime_ns == before
    again.close()
    assert state_of(await asyncio.wait_for(second, 60)) is JobState.SUCCEEDED


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[12/230] Building CXX object x.o", (12, 230)),
        ("[  5%] Building C object main.c.o", (5, 100)),
        ("[100%] Built target x", (100, 100)),
        ("-- Configuring done", None),
        ("warning: [12/230] in a message", None),
    ],
)
def test_progress_of_ninja_and_make(line: str, expected: tuple[int, int] | None) -> None:
    assert parse_progress(line) == expected


def test_the_exact_commands() -> None:
    step = CmakeBuildStep("s", "k", "b", "v", ("-DGGML_CUDA=ON",), ("llama-server", "llama-bench"), 8)
    assert configure_argv("cmake", step, "/e/sources/s", "/e/k.build") == [
        "cmake", "-S", "/e/sources/s", "-B", "/e/k.build", "-DGGML_CUDA=ON"
    ]  # fmt: skip
    assert build_argv("cmake", step, "/e/k.build") == [
        "cmake", "--build", "/e/k.build", "--config", "Release", "-j", "8", "--target", "llama-server", "llama-bench"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "step",
    [
        CmakeBuildStep("s", "../k", targets=("t",)),
        CmakeBuildStep("sources/..", "k", targets=("t",)),
        CmakeBuildStep("s", "sources", targets=("t",)),
        CmakeBuildStep("s", "k"),
        CmakeBuildStep("s", "k", targets=("-t",)),
        CmakeBuildStep("s", "k", targets=("t",), options=("-P", "/tmp/x.cmake")),
        CmakeBuildStep("s", "k", targets=("t",), options=("--open",)),
    ],
)
def test_steps_that_break_a_rule(step: CmakeBuildStep) -> None:
    with pytest.raises(SpecProblem):
        cmake_build.check(step)
