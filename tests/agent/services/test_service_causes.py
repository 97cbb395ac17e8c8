"""Causes are recognised in what real engines printed when each fault was provoked (texts/)."""

from pathlib import Path

import pytest

from fleet_agent.services.causes import hopeless, recognise

TEXTS = Path(__file__).parent / "texts"

EXPECTED = {
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


def test_every_captured_text_is_expected() -> None:
    assert {path.stem for path in TEXTS.glob("*.log")} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_captured_text(name: str) -> None:
    known = recognise((TEXTS / f"{name}.log").read_text(encoding="utf-8"))
    assert known is not None
    problem, permanent = known
    assert (problem.code, permanent) == EXPECTED[name]
    assert problem.remedy and "\n" not in problem.message


def test_the_message_names_what_was_not_known() -> None:
    for name, word in (
        ("llama_server_unknown_architecture", "qwexx"),
        ("llama_server_unknown_argument", "--no-such-flag"),
        ("mlx_lm_unknown_architecture", "qwexx"),
    ):
        known = recognise((TEXTS / f"{name}.log").read_text(encoding="utf-8"))
        assert known is not None and known[0].message.endswith(word)


# Texts of the CUDA runtime (cudaGetErrorString), of PyTorch, vLLM and Metal, which this test machine cannot provoke.
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("CUDA error: CUDA driver version is insufficient for CUDA runtime version", "cuda-mismatch"),
        ("alloc_buffer: allocating 18000.00 MiB on device 0: cudaMalloc failed: out of memory", "out-of-memory"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "out-of-memory"),
        ("ModuleNotFoundError: No module named 'mlx_lm'", "broken-install"),
        ("OSError: [Errno 98] Address already in use", "port-taken"),
        ("OSError: [Errno 48] Address already in use", "port-taken"),
    ],
)  # fmt: skip
def test_known_words(text: str, code: str) -> None:
    known = recognise(text)
    assert known is not None and known[0].code == code


def test_ordinary_words_are_no_cause() -> None:
    assert recognise("srv  llama_server: model loaded\nmain: server is listening on http://127.0.0.1:8080") is None


def test_a_dead_thread_behind_a_working_front_is_hopeless() -> None:
    assert hopeless((TEXTS / "mlx_lm_model_missing.log").read_text(encoding="utf-8")) is not None
    assert hopeless((TEXTS / "llama_server_port_taken.log").read_text(encoding="utf-8")) is None
