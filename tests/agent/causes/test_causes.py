"""Causes are recognised in what real programs printed when each fault was provoked (servers/, installs/), and for GPUs
in the words of the engines' own source, each cited.
"""

from pathlib import Path

import pytest

from fleet_agent.causes.installs import INSTALL_CAUSES
from fleet_agent.causes.recognise import Known, find_cause, shown_lines
from fleet_agent.causes.servers import SERVER_CAUSES
from fleet_agent.services.causes import exit_problem, hopeless

HERE = Path(__file__).parent

SERVERS = {
    "llama_server_context_too_large_for_memory": ("out-of-memory", False),
    "llama_server_file_not_found": ("model-missing", False),
    "llama_server_not_a_gguf": ("model-damaged", True),
    "llama_server_out_of_memory": ("out-of-memory", False),
    "llama_server_port_taken": ("port-taken", False),
    "llama_server_truncated_gguf": ("model-damaged", True),
    "llama_server_truncated_header": ("model-damaged", True),
    "llama_server_unknown_architecture": ("unknown-architecture", True),
    "llama_server_unknown_argument": ("unknown-argument", True),
    "mlx_lm_model_missing": ("model-missing", False),
    "mlx_lm_unknown_architecture": ("unknown-architecture", True),
}
# The code, and the word of the message that is this text's own.
INSTALLS = {
    "cmake_no_compiler": ("compiler-missing", "CMAKE_C_COMPILER"),
    "cmake_no_cuda_toolkit": ("cuda-missing", "nvcc"),
    "cmake_no_cxx_compiler": ("compiler-missing", "CMAKE_CXX_COMPILER"),
    "cmake_no_make": ("build-tool-missing", "Unix Makefiles"),
    "cmake_no_ninja": ("build-tool-missing", "Ninja"),
    "cmake_no_nvcc": ("cuda-missing", "nvcc"),
    "gcc_header_missing": ("header-missing", "cuda_runtime_missing.h"),
    "gcc_killed": ("build-out-of-memory", "memory"),
    "git_401": ("git-refused", "http://127.0.0.1:18444"),
    "git_404": ("git-refused", "/404/x/y/"),
    "git_certificate": ("certificate-refused", "certificate"),
    "git_dns": ("git-unreachable", "git.invalid"),
    "git_not_found": ("git-refused", "/x/y/info/refs"),
    "git_refused": ("git-unreachable", "127.0.0.1:9"),
    "git_ssh": ("git-unreachable", "127.0.0.1 port 9"),
    "ld_library_missing": ("library-missing", "curl_missing"),
    "nvcc_unsupported_architecture": ("cuda-mismatch", "compute_999"),
    "program_without_its_library": ("library-missing", "libmissing_part.so"),
    "uv_certificate": ("certificate-refused", "certificate"),
    "uv_conflict": ("requirements-conflict", "exclude"),
    "uv_git_commit": ("unknown-ref", "76732b4e7120808ff989edbd16401f61fa6a0afa"),
    "uv_git_dns": ("git-unreachable", "git.invalid"),
    "uv_git_ref": ("unknown-ref", "no-such-tag"),
    "uv_hash_mismatch": ("hash-mismatch", "packaging==24.2"),
    "uv_index_401": ("index-refused", "lack of valid authentication"),
    "uv_index_403": ("index-refused", "403 Forbidden"),
    "uv_index_503": ("index-unreachable", "127.0.0.1:18444"),
    "uv_index_dns": ("index-unreachable", "index.invalid"),
    "uv_index_unreachable": ("index-unreachable", "127.0.0.1:9"),
    "uv_no_git": ("tool-missing", "git"),
    "uv_no_index": ("not-on-index", "mlx-lm"),
    "uv_no_interpreter": ("python-missing", "Python 3.99"),
    "uv_no_such_package": ("not-on-index", "fleet-no-such-package-here"),
    "uv_no_such_version": ("not-on-index", "mlx-lm==99.0"),
    "uv_no_usable_wheel": ("no-matching-wheel", "numpy==1.19.5"),
    "uv_no_wheel_for_platform": ("no-matching-wheel", "mlx-metal==0.32.4"),
    "uv_python_download_unreachable": ("python-missing", "Python"),
    "uv_python_not_allowed": ("python-not-allowed", "Python>=3.11"),
    "uv_sdist_without_compiler": ("compiler-missing", "gcc"),
}
# Recognised by the step itself, which says how much is free.
ELSEWHERE = {"uv_disk_full"}

# Engines that this test's machine cannot make fail: their source, by distribution, file and line.
SOURCES = [
    # vllm 0.32.0 v1/core/kv_cache_utils.py:1011
    ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`", "out-of-memory"),
    # vllm 0.32.0 v1/core/kv_cache_utils.py:1031
    (
        "ValueError: To serve at least one request with the model's max seq len (262144), (16.0 GiB KV cache is "
        "needed, which is larger than the available KV cache memory (3.1 GiB). Based on the available memory, the "
        "estimated maximum model length is 51200.",
        "context-too-large",
    ),
    # vllm 0.32.0 v1/worker/utils.py:763
    (
        "ValueError: Free memory on device cuda:0 (3.1/23.6 GiB) on startup is less than desired GPU memory "
        "utilization (0.9, 21.2 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
        "out-of-memory",
    ),
    # vllm 0.32.0 model_executor/models/registry.py:1206, sglang 0.5.16 srt/models/registry.py:51
    (
        "ValueError: Model architectures ['QwexForCausalLM'] are not supported for now. Supported architectures: x",
        "unknown-architecture",
    ),
    # vllm 0.32.0 config/device.py:56
    ("RuntimeError: Failed to infer device type, please set the environment variable", "built-without-cuda"),
    # sglang 0.5.16 srt/model_executor/pool_configurator.py:64
    ("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.", "memory-fraction-too-small"),
    # sglang 0.5.16 srt/server_args.py:8372
    ("Port is already in use. dist_init_port=30001 port_base=30001", "port-taken"),
    # transformers 5.24.0 models/auto/configuration_auto.py:441
    (
        "ValueError: The checkpoint you are trying to load has model type `qwex` but Transformers does not recognize "
        "this architecture. This could be because of an issue with the checkpoint",
        "unknown-architecture",
    ),
    # torch 2.13.0 cuda/__init__.py:522
    ("AssertionError: Torch not compiled with CUDA enabled", "built-without-cuda"),
    # torch 2.13.0 cuda/__init__.py:427
    ("NVIDIA X with CUDA capability sm_999 is not compatible with the current PyTorch installation.", "cuda-mismatch"),
    # torch's CUDACachingAllocator.cpp
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "out-of-memory"),
    # strings of CUDA 13.0's libcudart.so, as cudaGetErrorString() gives them
    ("CUDA error: CUDA driver version is insufficient for CUDA runtime version", "cuda-mismatch"),
    ("CUDA error: no kernel image is available for execution on the device", "cuda-mismatch"),
    ("CUDA error: forward compatibility was attempted on non supported HW", "cuda-mismatch"),
    ("CUDA error: the provided PTX was compiled with an unsupported toolchain.", "cuda-mismatch"),
    # llama.cpp's ggml-cuda.cu
    ("alloc_buffer: allocating 18000.00 MiB on device 0: cudaMalloc failed: out of memory", "out-of-memory"),
    # CPython's errors, by number on Linux and macOS
    ("OSError: [Errno 98] Address already in use", "port-taken"),
    ("OSError: [Errno 48] Address already in use", "port-taken"),
    ("ModuleNotFoundError: No module named 'mlx_lm'", "broken-install"),
    # glibc's elf/dl-version.c
    ("bin/llama-server: /lib/libc.so.6: version `GLIBC_2.38' not found (required by x)", "built-for-newer-system"),
]
LM_STUDIO_SOURCES = [
    # lmstudio-ai/lms src/subcommands/load.ts
    ('Model not found\n\n  No model found with path being exactly "lab/tiny".\n', "model-missing"),
    ('Model not found\n\n  No model found that matches model key "tiny".\n', "model-missing"),
    ("This model may not be loaded based on your resource guardrails settings.", "guardrails"),
    # src/subcommands/server.ts
    ("Error: Failed to verify the server is running. Please try to use another port.", "port-taken"),
    ("Failed to start LM Studio service. Please make sure it is installed and have run it at", "daemon-not-running"),
]
BUILD_SOURCES = [
    # llama.cpp's ggml/src/ggml-cuda/CMakeLists.txt
    ("CMake Error at ggml/src/ggml-cuda/CMakeLists.txt:185 (message):\n  CUDA Toolkit not found", "cuda-missing"),
    # CUDA 13.0 include/crt/host_config.h:137
    (
        "#error -- unsupported GNU version! gcc versions later than 15 are not supported! The nvcc flag",
        "cuda-mismatch",
    ),
]


def recognised(table: str, name: str) -> Known:
    causes = SERVER_CAUSES if table == "servers" else INSTALL_CAUSES
    known = find_cause(causes, (HERE / table / f"{name}.log").read_text(encoding="utf-8"))
    assert known is not None
    return known


def test_every_captured_text_is_expected() -> None:
    assert {path.stem for path in (HERE / "servers").glob("*.log")} == set(SERVERS)
    assert {path.stem for path in (HERE / "installs").glob("*.log")} == set(INSTALLS) | ELSEWHERE


@pytest.mark.parametrize("name", sorted(SERVERS))
def test_what_servers_printed(name: str) -> None:
    known = recognised("servers", name)
    assert (known.code, known.permanent) == SERVERS[name]


@pytest.mark.parametrize("name", sorted(INSTALLS))
def test_what_installs_printed(name: str) -> None:
    known = recognised("installs", name)
    code, word = INSTALLS[name]
    assert known.code == code and word in known.message


@pytest.mark.parametrize(("text", "code"), [*SOURCES, *LM_STUDIO_SOURCES])
def test_the_words_of_the_engines_source(text: str, code: str) -> None:
    known = find_cause(SERVER_CAUSES, text)
    assert known is not None and known.code == code


@pytest.mark.parametrize(("text", "code"), BUILD_SOURCES)
def test_the_words_of_build_tools(text: str, code: str) -> None:
    known = find_cause(INSTALL_CAUSES, text)
    assert known is not None and known.code == code


@pytest.mark.parametrize("one", [*SERVER_CAUSES, *INSTALL_CAUSES], ids=lambda one: one.pattern.pattern[:40])
def test_every_cause_is_one_line_with_one_line_of_remedy(one: object) -> None:
    message, remedy = one.message, one.remedy  # type: ignore[attr-defined]
    assert message and remedy and "\n" not in message + remedy


def test_the_message_names_what_was_not_known() -> None:
    for name, word in (
        ("llama_server_unknown_architecture", "qwexx"),
        ("llama_server_unknown_argument", "--no-such-flag"),
        ("mlx_lm_unknown_architecture", "qwexx"),
    ):
        assert recognised("servers", name).message.endswith(word)


@pytest.mark.parametrize(
    "text",
    [
        "srv  llama_server: model loaded\nmain: server is listening on http://127.0.0.1:8080",
        # vllm 0.32.0 config/parallel.py:746: it goes on by itself.
        "WARNING [parallel.py:746] Address already in use. Retrying with a new port.",
    ],
)
def test_ordinary_words_are_no_cause(text: str) -> None:
    assert find_cause(SERVER_CAUSES, text) is None


def test_a_dead_thread_behind_a_working_front_is_hopeless() -> None:
    assert hopeless((HERE / "servers" / "mlx_lm_model_missing.log").read_text(encoding="utf-8")) is not None
    assert hopeless((HERE / "servers" / "llama_server_port_taken.log").read_text(encoding="utf-8")) is None


# --- what is shown ---


def test_the_last_lines_are_kept_with_the_cause() -> None:
    problem = exit_problem("m", 1, (HERE / "servers" / "llama_server_out_of_memory.log").read_text(encoding="utf-8"))
    assert problem.code == "out-of-memory" and "\n" not in problem.message
    assert problem.tail[-1].endswith("exiting due to model loading error")


def test_an_unknown_end_is_one_line_and_its_last_words() -> None:
    problem = exit_problem("m", 3, "[fleet] start: server\nfirst\nsecond\n")
    assert (problem.message, problem.tail) == ("it ended with exit code 3", ("first", "second"))


def test_the_telling_line_is_shown_though_others_printed_much_after_it() -> None:
    lines = ["x.c:1: fatal error: a.h: No such file or directory", *(f"[{n}/90] building" for n in range(40))]
    known = find_cause(INSTALL_CAUSES, "\n".join(lines))
    assert known is not None
    shown = shown_lines(lines, known.line)
    assert (shown[0], shown[-1], len(shown)) == (lines[0], lines[-1], 12)


def test_nothing_that_moves_a_cursor_is_shown() -> None:
    assert shown_lines(["\x1b[31merror\x1b[0m: \x07no", "", "  "]) == ("error: no",)
