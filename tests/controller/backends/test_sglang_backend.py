"""SGLang: releases and commits, the packages that a model replaces, and the command line of the server."""

from typing import Any

import pytest

from fleet_agent.jobs import model as agent_model
from fleet_agent.server.jobs import spec_from_wire
from fleet_agent.steps import python_environment
from fleet_controller.backends.base import BackendError, Installation, InstallRequest, ServeOptions
from fleet_controller.backends.sglang import SGLang
from fleet_controller.backends.versions import SGLANG_VERSION
from fleet_controller.domain.base import EnvironmentVariable
from fleet_controller.domain.facts import GpuFacts, HostFacts, HostLayout, SystemFacts, ToolFacts
from fleet_controller.domain.resolved import BackendOverrides
from fleet_controller.domain.steps import JobSpec, PythonEnvironmentStep
from fleet_controller.wire import to_wire
from fleet_proto.v1 import jobs_pb2

GPU = GpuFacts(index=0, name="NVIDIA GeForce RTX 4090", compute_capability_major=8, compute_capability_minor=9)
LAYOUT = HostLayout(state_dir="/s", engines_dir="/s/engines", hf_home="/hf")
SYSTEM = SystemFacts(os="linux", architecture="x86_64", libc="glibc 2.39", python_version="3.12.3")
HOST = HostFacts(system=SYSTEM, gpus=(GPU,), layout=LAYOUT)
SGLANG = SGLang()
TRANSFORMERS = (
    "transformers @ git+https://github.com/huggingface/transformers.git@76732b4e7120808ff989edbd16401f61fa6a0afa"
)


def step(version: str = "", host: HostFacts = HOST, requirements: tuple[str, ...] = ()) -> PythonEnvironmentStep:
    request = InstallRequest(version=version, gpus=(GPU,), requirements=requirements)
    made = SGLANG.plan_install(host, request).steps[0].python_environment
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("version", "requirement"),
    [
        ("", f"sglang=={SGLANG_VERSION}"),
        ("0.5.8", "sglang==0.5.8"),
        ("0.5.10.post1", "sglang==0.5.10.post1"),
        ("main", "sglang @ git+https://github.com/sgl-project/sglang.git#subdirectory=python"),
        ("7f99319c", "sglang @ git+https://github.com/sgl-project/sglang.git@7f99319c#subdirectory=python"),
        ("a" * 40, f"sglang @ git+https://github.com/sgl-project/sglang.git@{'a' * 40}#subdirectory=python"),
    ],
)
def test_where_a_version_comes_from(version: str, requirement: str) -> None:
    made = step(version)
    assert (made.requirements, made.overrides, made.torch_backend) == ((requirement,), (), "")


@pytest.mark.parametrize("version", ["latest", "main; x", "master", "-r x", "7f9931", "0.5.8 --pre", "../x"])
def test_what_is_no_version(version: str) -> None:
    with pytest.raises(BackendError) as raised:
        SGLANG.plan_install(HOST, InstallRequest(version=version, gpus=(GPU,)))
    assert raised.value.code == "bad-version" and "commit" in raised.value.remedy


def test_only_the_branch_warns_that_it_moves() -> None:
    assert SGLANG.plan_install(HOST, InstallRequest(version="main", gpus=(GPU,))).warnings
    assert not SGLANG.plan_install(HOST, InstallRequest(version="7f99319c", gpus=(GPU,))).warnings


def test_a_pinned_package_replaces_what_sglang_asks_for() -> None:
    made = step("0.5.8", requirements=(TRANSFORMERS,))
    assert made.requirements == ("sglang==0.5.8", TRANSFORMERS) and made.overrides == (TRANSFORMERS,)
    plain = SGLANG.plan_install(HOST, InstallRequest(version="0.5.8", gpus=(GPU,))).install_key
    assert made.install_key != plain


def test_the_agent_accepts_the_step() -> None:
    request = InstallRequest(
        version="7f99319c", gpus=(GPU,), requirements=(TRANSFORMERS, "nvidia-cudnn-cu12==9.16.0.29")
    )
    steps = SGLANG.plan_install(HOST, request).steps
    message = to_wire(JobSpec(job_id="test", title="test", steps=steps), jobs_pb2.JobSpec)
    (over_there,) = spec_from_wire(message).steps
    assert isinstance(over_there.python_environment, agent_model.PythonEnvironmentStep)
    python_environment.check(over_there.python_environment)
    assert over_there.python_environment.overrides == (TRANSFORMERS, "nvidia-cudnn-cu12==9.16.0.29")


@pytest.mark.parametrize(
    ("version", "host_python", "asked"),
    [
        ("0.5.8", "3.8.10", "3.10"),
        ("0.5.8", "3.10.12", ""),
        ("0.5.16", "3.14.0", "3.13"),
        ("0.5.23", "3.10.12", "3.11"),
        ("main", "3.10.12", "3.11"),
        ("7f99319c", "3.12.3", ""),
    ],
)
def test_each_version_declares_its_pythons(version: str, host_python: str, asked: str) -> None:
    host = HOST.model_copy(update={"system": SYSTEM.model_copy(update={"python_version": host_python})})
    assert step(version, host).python == asked


def test_a_repository_needs_git() -> None:
    bare = HOST.model_copy(update={"tools": (ToolFacts(name="uv", path="/usr/bin/uv"),)})
    with pytest.raises(BackendError, match="git not found"):
        SGLANG.plan_install(bare, InstallRequest(version="main", gpus=(GPU,)))
    assert SGLANG.plan_install(bare, InstallRequest(version="0.5.8", gpus=(GPU,))).steps


def test_where_it_does_not_run() -> None:
    assert SGLANG.unsupported_reason(HOST) is None
    volta = GpuFacts(name="V100", compute_capability_major=7, compute_capability_minor=0)
    assert "7.5, GPU 0 (V100) has 7.0" in (SGLANG.unsupported_reason(HOST.model_copy(update={"gpus": (volta,)})) or "")
    both = HOST.model_copy(update={"gpus": (GPU, volta.model_copy(update={"index": 1}))})
    assert SGLANG.unsupported_reason(both) is None
    with pytest.raises(BackendError, match=r"GPU 1 \(V100\)") as raised:
        SGLANG.plan_install(both, InstallRequest(gpus=both.gpus))
    assert "CUDA_VISIBLE_DEVICES" in raised.value.remedy
    assert SGLANG.plan_install(both, InstallRequest(gpus=(GPU,))).steps
    unknown = GpuFacts(name="?")
    assert SGLANG.unsupported_reason(HOST.model_copy(update={"gpus": (unknown,)})) is None


def serve(**changes: Any) -> list[str]:
    values = {"model_name": "m", "model_path": "/snapshot", "context_tokens": 4096, "port": 30001, "devices": 1}
    installation = Installation(backend="sglang", version="1", install_key="k")
    command = SGLANG.serve(installation, ServeOptions.model_validate({**values, **changes}))
    assert (command.tool.install_key, command.tool.name, command.served_model_name) == ("k", "venv/bin/python3", "m")
    return list(command.arguments)


def test_server_command() -> None:
    assert serve() == [
        "-m", "sglang.launch_server", "--model-path", "/snapshot", "--mem-fraction-static", "0.8",
        "--served-model-name", "m", "--host", "127.0.0.1", "--port", "30001", "--context-length", "4096",
        "--enable-metrics",
    ]  # fmt: skip


def test_what_a_model_and_a_host_add() -> None:
    overrides = BackendOverrides(
        speculative=("--speculative-algorithm", "EAGLE"),
        reasoning_parser="r",
        tool_call_parser="t",
        memory_fraction="0.95",
        arguments=("--x",),
    )
    assert serve(overrides=overrides, devices=4, max_parallel=8) == [
        "-m", "sglang.launch_server", "--model-path", "/snapshot", "--tp-size", "4",
        "--tool-call-parser", "t", "--reasoning-parser", "r", "--speculative-algorithm", "EAGLE", "--x",
        "--mem-fraction-static", "0.95", "--served-model-name", "m", "--host", "127.0.0.1", "--port", "30001",
        "--context-length", "4096", "--max-running-requests", "8", "--enable-metrics",
    ]  # fmt: skip
    taken = SGLANG.preallocation(overrides)
    assert (taken.fraction, taken.of_free_memory) == (0.95, True)


def test_variables_of_the_catalog_reach_the_server() -> None:
    variable = EnvironmentVariable(name="SGLANG_ENABLE_SPEC_V2", value="1")
    options = ServeOptions(
        model_name="m", model_path="/m", context_tokens=1, overrides=BackendOverrides(environment=(variable,))
    )
    command = SGLANG.serve(Installation(backend="sglang", version="1", install_key="k"), options)
    assert command.environment == (variable,)
    assert command.readiness.path == "/health" and command.readiness.start_limit_seconds > 2 * 184


def test_version_is_read_from_metadata() -> None:
    assert SGLANG.parse_version("Name: sglang\nVersion: 0.5.10.post1\n") == "0.5.10.post1"
    assert SGLANG.parse_version("no such package") is None
