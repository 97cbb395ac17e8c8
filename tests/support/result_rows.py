"""Results as tests need them."""

from typing import Any

from fleet_controller.results.columns import Result


def decode(mean: float | None = 100.0, deviation: float | None = 1.0, **columns: Any) -> Result:
    """A decode figure of llama-bench on gpu1."""
    values: dict[str, Any] = {
        "run_id": "r1",
        "host": "gpu1",
        "chip": "NVIDIA GeForce RTX 4090",
        "model": "qwen3.5-4b",
        "quantization": "Q4_K_M",
        "backend": "llama.cpp",
        "backend_version": "b8396",
        "client": "llama-bench",
        "test_kind": "tg",
        "generation_tokens": 64,
        "repetitions": 5,
        "finished_unix_ms": 1_790_000_000_000,
    }
    return Result(**(values | {"mean": mean, "deviation": deviation} | columns))
