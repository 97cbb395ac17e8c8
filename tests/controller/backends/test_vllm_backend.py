"""vLLM: where each version comes from, on which Python, and the command line of the server."""

from typing import Any

import pytest

from fleet_controller.backends.base import BackendError, Installation, InstallRequest, ServeOptions
from fleet_controller.backends.versions import VLLM_VERSION
from fleet_controller.backends.vllm import Vllm
from fleet_controller.domain.facts import EngineFacts, GpuFacts, HostFacts, HostLayout, SystemFacts, ToolFacts
from fleet_controller.domain.resolved import BackendOverrides, ModelArtifact
from fleet_controller.domain.steps import PythonEnvironmentStep

GPU = GpuFacts(index=0, name="NVIDIA GeForce RTX 4090", compute_capability_major=8, compute_capability_minor=9)
LAYOUT = HostLayout(state_dir="/s", engines_dir="/s/engines", hf_home="/hf")
SYSTEM = SystemFacts(os="linux", architecture="x86_64", libc="glibc 2.39", python_version="3.12.3")
HOST = HostFacts(system=SYSTEM, gpus=(GPU,), layout=LAYOUT)
VLLM = Vllm()


def with_system(**changes: Any) -> HostFacts:
    return HOST.model_copy(update={"system": SYSTEM.model_copy(update=changes)})


def step(version: str = "", host: HostFacts = HOST, requirements: tuple[str, ...] = ()) -> PythonEnvironmentStep:
    request = InstallRequest(version=version, gpus=(GPU,), requirements=requirements)
    made = VLLM.plan_install(host, request).steps[0].python_environment
    assert made is not None
    return made


COMMIT = "f34032433" + "0" * 31


@pytest.mark.parametrize(
    ("version", "requirement", "index"),
    [
        ("", f"vllm=={VLLM_VERSION}", ()),
        ("0.17.1", "vllm==0.17.1", ()),
        ("0.18.0.post1", "vllm==0.18.0.post1", ()),
        ("nightly", "vllm", ("https://wheels.vllm.ai/nightly",)),
        (COMMIT, "vllm", (f"https://wheels.vllm.ai/{COMMIT}",)),
        (
            "0.17.2rc1.dev13+gf34032433",
            "vllm==0.17.2rc1.dev13+gf34032433",
            ("https://wheels.vllm.ai/nightly",),
        ),
    ],
)
def test_where_a_version_comes_from(version: str, requirement: str, index: tuple[str, ...]) -> None:
    made = step(version)
    assert (made.requirements, made.extra_index_urls, made.torch_backend) == ((requirement,), index, "auto")
    assert made.overrides == ()


def test_versions_lie_side_by_side() -> None:
    versions = ("", "0.17.1", "nightly", COMMIT)
    keys = {VLLM.plan_install(HOST, InstallRequest(version=version, gpus=(GPU,))).install_key for version in versions}
    assert len(keys) == len(versions)


def test_only_a_moving_version_warns() -> None:
    assert VLLM.plan_install(HOST, InstallRequest(version="nightly", gpus=(GPU,))).warnings
    assert not VLLM.plan_install(HOST, InstallRequest(gpus=(GPU,))).warnings


@pytest.mark.parametrize(
    ("version", "host_python", "asked"),
    [
        ("0.26.0", "3.12.3", ""),
        ("0.26.0", "3.10.12", ""),
        ("0.26.0", "3.9.2", "3.10"),
        ("0.26.0", "3.15.0", "3.14"),
        ("0.17.1", "3.14.1", "3.13"),
        ("0.32.0", "3.10.12", "3.11"),
        ("nightly", "3.10.12", "3.11"),
        ("0.26.0", "", ""),
    ],
)
def test_each_version_declares_its_pythons(version: str, host_python: str, asked: str) -> None:
    assert step(version, with_system(python_version=host_python)).python == asked


@pytest.mark.parametrize(
    "version", ["latest", "-r x", "vllm==1", "0.1; x", "git+https://example.org", "f3403243", "../x"]
)
def test_what_is_no_version(version: str) -> None:
    with pytest.raises(BackendError) as raised:
        VLLM.plan_install(HOST, InstallRequest(version=version, gpus=(GPU,)))
    assert raised.value.code == "bad-version" and "nightly" in raised.value.remedy


def test_what_a_model_needs_beside_it_replaces_its_own_pins() -> None:
    made = step(requirements=("transformers==5.12.1",))
    assert made.requirements == (f"vllm=={VLLM_VERSION}", "transformers==5.12.1")
    assert made.overrides == ("transformers==5.12.1",)


def test_an_install_that_is_there() -> None:
    key = VLLM.plan_install(HOST, InstallRequest(gpus=(GPU,))).install_key
    there = EngineFacts(backend="vllm", version=VLLM_VERSION, managed=True, install_key=key)
    host = HOST.model_copy(update={"engines": (there,)})
    assert VLLM.plan_install(host, InstallRequest(gpus=(GPU,))).steps == ()


def test_what_stops_an_install() -> None:
    bare = HOST.model_copy(update={"tools": (ToolFacts(name="git", path="/usr/bin/git"),)})
    with pytest.raises(BackendError, match="uv not found"):
        VLLM.plan_install(bare, InstallRequest(gpus=(GPU,)))
    with pytest.raises(BackendError, match="cannot be adopted"):
        VLLM.plan_install(HOST, InstallRequest(engine_path="/opt/vllm", gpus=(GPU,)))
    with pytest.raises(BackendError, match="no GPU"):
        VLLM.plan_install(HOST, InstallRequest())


def test_where_it_does_not_run() -> None:
    assert VLLM.unsupported_reason(HOST) is None
    assert "Linux" in (VLLM.unsupported_reason(with_system(os="darwin")) or "")
    assert "musl" in (VLLM.unsupported_reason(with_system(libc="musl 1.2")) or "")
    assert "riscv64" in (VLLM.unsupported_reason(with_system(architecture="riscv64")) or "")
    assert "NVIDIA GPU" in (VLLM.unsupported_reason(HOST.model_copy(update={"gpus": ()})) or "")
    pascal = GpuFacts(name="P40", compute_capability_major=6, compute_capability_minor=1)
    assert "7.0, GPU 0 (P40) has 6.1" in (VLLM.unsupported_reason(HOST.model_copy(update={"gpus": (pascal,)})) or "")


def serve(**changes: Any) -> list[str]:
    values = {"model_name": "m", "model_path": "/snapshot", "context_tokens": 4096, "port": 8001, "devices": 1}
    installation = Installation(backend="vllm", version="1", install_key="k")
    command = VLLM.serve(installation, ServeOptions.model_validate({**values, **changes}))
    assert (command.tool.install_key, command.tool.name, command.served_model_name) == ("k", "venv/bin/vllm", "m")
    return list(command.arguments)


def test_server_command() -> None:
    assert serve() == [
        "serve", "/snapshot", "--served-model-name", "m", "--host", "127.0.0.1", "--port", "8001",
        "--max-model-len", "4096", "--gpu-memory-utilization", "0.9",
    ]  # fmt: skip


def test_what_a_model_and_a_host_add() -> None:
    speculative = ("--speculative-config", '{"method": "mtp", "num_speculative_tokens": 1}')
    overrides = BackendOverrides(
        speculative=speculative, reasoning_parser="r", tool_call_parser="t", memory_fraction="0.7", arguments=("--x",)
    )
    assert serve(overrides=overrides, devices=4, max_parallel=8) == [
        "serve", "/snapshot", *speculative, "--reasoning-parser", "r",
        "--enable-auto-tool-choice", "--tool-call-parser", "t", "--x",
        "--served-model-name", "m", "--host", "127.0.0.1", "--port", "8001", "--max-model-len", "4096",
        "--gpu-memory-utilization", "0.7", "--tensor-parallel-size", "4", "--max-num-seqs", "8",
    ]  # fmt: skip
    assert VLLM.preallocation(overrides).fraction == 0.7


def test_a_first_start_may_take_minutes() -> None:
    """184 s were measured before the first answer."""
    options = ServeOptions(model_name="m", model_path="/m", context_tokens=1)
    command = VLLM.serve(Installation(backend="vllm", version="1", install_key="k"), options)
    assert command.readiness.path == "/health" and command.readiness.start_limit_seconds > 2 * 184


def test_no_statistics_are_sent() -> None:
    options = ServeOptions(model_name="m", model_path="/m", context_tokens=1)
    command = VLLM.serve(Installation(backend="vllm", version="1", install_key="k"), options)
    assert {variable.name: variable.value for variable in command.environment} == {"VLLM_NO_USAGE_STATS": "1"}


def test_model_path_is_the_snapshot_or_the_folder() -> None:
    hub = ModelArtifact(format="safetensors", repository="Qwen/Qwen3.5-4B", commit="c" * 40)
    assert VLLM.model_path(hub, "/hf") == f"/hf/hub/models--Qwen--Qwen3.5-4B/snapshots/{'c' * 40}"
    assert VLLM.model_path(ModelArtifact(format="safetensors", local_path="/models/m"), "/hf") == "/models/m"


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ("Metadata-Version: 2.4\nName: vllm\nVersion: 0.17.2rc1.dev13+gf34032433\n", "0.17.2rc1.dev13+gf34032433"),
        ("0.26.0\n", "0.26.0"),
        ("", None),
        ("WARNING: Package(s) not found: vllm", None),
    ],
)
def test_version_is_read_from_metadata(output: str, version: str | None) -> None:
    assert VLLM.parse_version(output) == version
