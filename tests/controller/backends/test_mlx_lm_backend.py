"""MLX-LM: its environment, the command line of the server, and what its benchmark printed."""

from pathlib import Path

import pytest

from fleet_controller.backends.base import BackendError, BenchOptions, Installation, InstallRequest, ServeOptions
from fleet_controller.backends.mlx_lm import MlxLm, parse_mlx_benchmark
from fleet_controller.backends.versions import MLX_LM_VERSION, MLX_VERSION
from fleet_controller.domain.facts import EngineFacts, HostFacts, HostLayout, SystemFacts, ToolFacts

DATA = Path(__file__).parent / "data"
LAYOUT = HostLayout(state_dir="/s", engines_dir="/s/engines", hf_home="/hf")
MLX = MlxLm()


def facts(os: str, architecture: str, libc: str | None = None, engines: tuple[EngineFacts, ...] = ()) -> HostFacts:
    system = SystemFacts(os=os, architecture=architecture, libc=libc)
    return HostFacts(system=system, layout=LAYOUT, engines=engines)


MAC, LINUX = facts("darwin", "arm64"), facts("linux", "x86_64", "glibc 2.36")


def requirements(host: HostFacts, version: str = "") -> tuple[str, ...]:
    step = MLX.plan_install(host, InstallRequest(version=version)).steps[0].python_environment
    assert step is not None
    return step.requirements


def test_requirements() -> None:
    assert requirements(MAC) == (f"mlx-lm=={MLX_LM_VERSION}", f"mlx=={MLX_VERSION}")
    assert requirements(LINUX) == (f"mlx-lm=={MLX_LM_VERSION}", f"mlx[cpu]=={MLX_VERSION}")
    assert requirements(MAC, "0.31.1") == ("mlx-lm==0.31.1", "mlx")


@pytest.mark.parametrize("version", ["latest", "0.31; x", "git+https://example.org", "-r file"])
def test_what_is_no_version(version: str) -> None:
    with pytest.raises(BackendError, match="not a version"):
        MLX.plan_install(MAC, InstallRequest(version=version))


def test_an_install_that_is_there() -> None:
    key = MLX.plan_install(MAC, InstallRequest()).install_key
    there = EngineFacts(backend="mlx-lm", version=MLX_LM_VERSION, managed=True, install_key=key)
    assert MLX.plan_install(facts("darwin", "arm64", engines=(there,)), InstallRequest()).steps == ()


def test_a_host_without_uv_is_told_before_anything_runs() -> None:
    bare = MAC.model_copy(update={"tools": (ToolFacts(name="git", path="/usr/bin/git"),)})
    with pytest.raises(BackendError, match="uv not found"):
        MLX.plan_install(bare, InstallRequest())


def test_where_it_does_not_run() -> None:
    assert MLX.unsupported_reason(MAC) is None and MLX.unsupported_reason(LINUX) is None
    assert "Apple silicon" in (MLX.unsupported_reason(facts("darwin", "x86_64")) or "")
    assert "musl" in (MLX.unsupported_reason(facts("linux", "x86_64", "musl 1.2")) or "")


def test_server_command() -> None:
    options = ServeOptions(
        model_name="m",
        model_path="/snapshot",
        context_tokens=4096,
        port=8081,
        sampling=(("temp", "0.7"),),
        hf_home="/hf",
    )
    command = MLX.serve(Installation(backend="mlx-lm", version="1", install_key="k"), options)
    assert (command.tool.install_key, command.tool.name) == ("k", "venv/bin/python3")
    assert command.arguments == (
        "-m", "mlx_lm", "server", "--model", "/snapshot", "--log-level", "DEBUG",
        "--host", "127.0.0.1", "--port", "8081",
    )  # fmt: skip
    assert command.served_model_name == "default_model"
    assert {variable.name: variable.value for variable in command.environment} == {"HF_HOME": "/hf"}


OPTIONS = BenchOptions(prompt_tokens=128, generation_tokens=32, repetitions=3)


def test_bench_rows_of_a_captured_run() -> None:
    prefill, decode = MLX.parse_bench((DATA / "mlx_lm.benchmark.txt").read_text(encoding="utf-8"), OPTIONS)
    assert (prefill.kind, prefill.tokens, prefill.mean_tokens_per_second) == ("prefill", 128, 1983.728)
    assert (decode.kind, decode.tokens, decode.mean_tokens_per_second) == ("decode", 32, 244.595)
    assert prefill.samples_tokens_per_second == (1647.206, 2169.270, 2134.708)
    assert decode.deviation_tokens_per_second == pytest.approx(3.379, abs=0.01)


def test_rows_of_the_lab_notes_format() -> None:
    """mlx-lm 0.31.1 printed no total_time."""
    text = (
        "Timing with prompt_tokens=1024, generation_tokens=64, batch_size=1.\n"
        "Trial 1:  prompt_tps=361.322, generation_tps=39.657, peak_memory=3.502\n"
        "Averages: prompt_tps=359.188, generation_tps=39.023, peak_memory=3.503\n"
    )
    rows = parse_mlx_benchmark(text)
    assert [row.mean_tokens_per_second for row in rows] == [359.188, 39.023]
    assert rows[0].deviation_tokens_per_second is None


def test_output_without_averages_is_a_failure() -> None:
    text = (DATA / "mlx_lm.benchmark.txt").read_text(encoding="utf-8")
    with pytest.raises(BackendError, match="prefill of 128"):
        MLX.parse_bench(text.replace("Averages", "Killed"), OPTIONS)


def test_depths_are_refused_before_anything_runs() -> None:
    with pytest.raises(BackendError, match="depth 0"):
        MLX.bench_step(
            Installation(backend="mlx-lm", version="1", install_key="k"),
            "/m",
            OPTIONS.model_copy(update={"depths": (8,)}),
        )
