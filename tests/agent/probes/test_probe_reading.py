"""Probes on real folders and programs, and the runner that keeps them apart."""

import asyncio
import json
import threading
from pathlib import Path

import pytest

from fleet_agent.configuration import AgentConfiguration
from fleet_agent.layout import Layout
from fleet_agent.probes import PROBES, disk, engines, tools
from fleet_agent.probes.model import EngineFacts, NoData, Outcome, Probe, ProbeContext, ToolFacts
from fleet_agent.probes.reading import ReadingError, run_text, version_text
from fleet_agent.probes.runner import ProbeRunner, take


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProbeContext:
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", f"{home / 'bin'}:/usr/bin:/bin")
    layout = Layout.from_environment(
        {"HOME": str(home), "FLEET_RUNTIME_DIR": str(tmp_path / "run"), "FLEET_MACHINE_ID": "m"}
    )
    layout.ensure()
    return ProbeContext(
        layout, AgentConfiguration(tools={"cmake": script(home / "opt/cmake", "echo cmake version 9.8.7")})
    )


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_the_table_names_each_probe_once() -> None:
    names = [probe.name for probe in PROBES]
    assert len(names) == len(set(names)) == 8


def test_engines_are_our_installs_and_what_is_on_the_path(context: ProbeContext) -> None:
    installs = context.layout.engines_dir
    (installs / "llama.cpp-b1-0a0b0c0d").mkdir()
    install = {"backend": "llama.cpp", "version": "b1", "options": [], "binaries": ["llama-server"], "size_bytes": 55}
    (installs / "llama.cpp-b1-0a0b0c0d/install.json").write_text(json.dumps(install))
    (installs / "half-built").mkdir()
    (installs / "damaged").mkdir()
    (installs / "damaged/install.json").write_text("{")
    bin_folder = Path.home() / "bin"
    server = script(bin_folder / "llama-server", "echo 'version: 6543 (abcdef0)' >&2")
    venv = Path.home() / "venv"
    launcher = script(venv / "bin/mlx_lm.server", "exit 1")
    (venv / "lib/python3.12/site-packages/mlx_lm-0.32.2.dist-info").mkdir(parents=True)
    (bin_folder / "mlx_lm.server").symlink_to(launcher)
    script(bin_folder / "vllm", "touch ~/vllm-was-run")
    lms = script(Path.home() / ".lmstudio/bin/lms", "exit 1")

    assert engines.read(context) == (
        EngineFacts(
            "llama.cpp", str(installs / "llama.cpp-b1-0a0b0c0d"), "b1", True, "llama.cpp-b1-0a0b0c0d", size_bytes=55
        ),
        EngineFacts("llama.cpp", str(server), "b6543"),
        EngineFacts("mlx-lm", str(bin_folder / "mlx_lm.server"), "0.32.2"),
        EngineFacts("vllm", str(bin_folder / "vllm"), None),
        EngineFacts("lm-studio", str(lms)),
    )
    assert not (Path.home() / "vllm-was-run").exists(), "asking vLLM for its version takes half a minute"


def test_tools_come_with_path_and_version(context: ProbeContext) -> None:
    git = script(Path.home() / "bin/git", "echo git version 1.2.3")
    found = {one.name: one for one in tools.read(context)}
    assert found["git"] == ToolFacts("git", str(git), "1.2.3")
    assert found["cmake"] == ToolFacts("cmake", str(context.configuration.tools["cmake"]), "9.8.7")
    assert "lms" not in found


def test_a_tool_that_breaks_is_listed_without_a_version(context: ProbeContext) -> None:
    git = script(Path.home() / "bin/git", "echo git version 1.2.3; exit 1")
    assert ToolFacts("git", str(git), None) in tools.read(context)


def test_a_disk_that_is_not_created_yet_is_that_of_its_parent(tmp_path: Path) -> None:
    facts = disk.read_folder("engines", tmp_path / "a/b/c")
    assert facts.path == str(tmp_path / "a/b/c")
    assert facts.writable is True
    assert facts.free_bytes is not None and facts.total_bytes is not None
    assert 0 < facts.free_bytes <= facts.total_bytes
    assert facts.filesystem


def test_programs_that_fail_are_named_with_their_last_words(tmp_path: Path) -> None:
    failing = script(tmp_path / "failing", "echo first; echo 'no such device' >&2; exit 3")
    with pytest.raises(ReadingError, match="failing ended with 3: no such device"):
        run_text([failing])
    assert run_text([failing], check=False) == "first\nno such device\n"
    with pytest.raises(ReadingError, match="No such file"):
        run_text([tmp_path / "missing"])
    with pytest.raises(ReadingError, match="timed out"):
        run_text([script(tmp_path / "slow", "exec sleep 60")], limit_seconds=0.1)


def test_a_version_is_asked_once_until_the_program_changes(tmp_path: Path) -> None:
    program = script(tmp_path / "tool", f"echo asked >> {tmp_path}/count; echo 1.0")
    assert [version_text(program, "--version") for _ in range(3)] == ["1.0\n"] * 3
    assert (tmp_path / "count").read_text() == "asked\n"
    script(program, "echo 2.0.0")
    assert version_text(program, "--version") == "2.0.0\n"
    assert version_text(tmp_path / "missing") is None


def test_what_a_probe_raises_becomes_its_result(context: ProbeContext) -> None:
    def empty(context: ProbeContext) -> None:
        raise NoData("nothing here")

    def failing(context: ProbeContext) -> None:
        raise ValueError("first line\nsecond line")

    result = take(Probe("a", empty), context)
    assert (result.outcome, result.detail, result.facts) == (Outcome.NO_DATA, "nothing here", None)
    result = take(Probe("b", failing), context)
    assert (result.outcome, result.detail) == (Outcome.FAILED, "ValueError: first line")
    assert result.seconds >= 0


async def test_results_come_in_table_order_and_a_hanging_probe_is_not_started_twice(context: ProbeContext) -> None:
    release, started = threading.Event(), []

    def hanging(context: ProbeContext) -> str:
        started.append(threading.current_thread())
        release.wait(60)
        return "late"

    probes = (Probe("slow", hanging, limit_seconds=0.05), Probe("quick", lambda context: "now"))
    runner = ProbeRunner()
    try:
        for _ in range(3):
            slow, quick = await runner.run(probes, context)
            assert (slow.outcome, quick.facts) == (Outcome.TIMED_OUT, "now")
        assert len(started) == 1
        waiting = asyncio.ensure_future(runner.run([Probe("slow", hanging, limit_seconds=30)], context))
        await asyncio.sleep(0)
    finally:
        release.set()
    (late,) = await waiting
    assert (late.outcome, late.facts) == (Outcome.OK, "late"), "a call that comes later gets the answer under way"
    assert len(started) == 1
