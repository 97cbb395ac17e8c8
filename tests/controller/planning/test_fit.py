"""Fit: the arithmetic against known figures, and the three verdicts."""

import pytest

from fleet_controller.backends import BACKENDS
from fleet_controller.backends.base import Preallocation
from fleet_controller.domain.plan import FitVerdict
from fleet_controller.domain.resolved import ModelArtifact
from fleet_controller.domain.shape import ModelShape
from fleet_controller.hub.resolve import catalog_shape
from fleet_controller.planning.devices import MemoryPool
from fleet_controller.planning.fit import Fit, context_levels, judge_fit
from fleet_inventory.catalog import load_catalog

GB = 10**9


def shape(name: str) -> ModelShape:
    model, _ = load_catalog().resolve(name)
    return catalog_shape(model.architecture, model.max_context)


@pytest.mark.parametrize(
    ("name", "kv_bytes_per_token", "state_bytes"),
    [
        # 16 full attention layers x 4 heads x (256 + 256) x 2 B; 48 x 48 heads x 128 x 128 x 4 B = 144 MiB, as
        # llama.cpp's log of pull request 23792 shows; and the short convolution, 48 x 3 x 10240 x 4 B.
        ("qwen3.5-27b", 65536, 150994944 + 5898240),
        ("qwen3.5-9b", 32768, 50331648 + 2359296),
        ("qwen3.5-4b", 32768, 50331648 + 2359296),
        ("qwen3.5-35b-a3b", 20480, 62914560 + 2949120),
        # MLA: 47 layers x (512 + 64) x 2 B
        ("glm-4.7-flash", 54144, 0),
    ],
)
def test_cache_sizes_of_the_catalog(name: str, kv_bytes_per_token: int, state_bytes: int) -> None:
    assert shape(name).kv_bytes_per_token() == kv_bytes_per_token
    assert shape(name).recurrent_bytes_per_sequence() == state_bytes


def test_a_window_stops_growing() -> None:
    gpt_oss = ModelShape(
        layers=24, kv_layers=12, kv_heads=8, key_length=64, value_length=64, window_layers=12, window_tokens=128
    )
    assert gpt_oss.kv_bytes_per_token() == 24576
    assert gpt_oss.window_bytes(100) == 12 * 8 * 128 * 2 * 100
    assert gpt_oss.window_bytes(131072) == gpt_oss.window_bytes(128)


def judged(
    weights_bytes: int | None,
    free_bytes: int | None,
    *,
    backend: str = "llama.cpp",
    spill_bytes: int = 0,
    kind: str = "VRAM",
    model: str = "qwen3.5-27b",
    context: int = 262144,
    parallel: int = 1,
) -> Fit:
    artifact = ModelArtifact(format="gguf", quantization="Q", weights_bytes=weights_bytes)
    pool = MemoryPool(kind=kind, free_bytes=free_bytes, total_bytes=free_bytes, spill_bytes=spill_bytes)
    chosen = BACKENDS[backend]
    use = chosen.memory_use(context, parallel, kind != "RAM")
    return judge_fit(artifact, shape(model), use, pool, offloads=chosen.offloads)


def test_what_is_added_up_is_shown() -> None:
    fit = judged(17_609_365_914, 24 * GB, spill_bytes=64 * GB)
    assert {line.what: line.bytes for line in fit.lines if line.what not in ("compute buffers", "CUDA context")} == {
        "weights": 17_609_365_914,
        "KV cache": 65536 * 262144,
        "recurrent state": 150994944 + 5898240,
        "reserve": 1 << 30,
    }
    assert fit.predicted_bytes == fit.needed_bytes - (1 << 30)
    assert fit.needed_bytes == sum(line.bytes for line in fit.lines)
    kv_line = next(line for line in fit.lines if line.what == "KV cache")
    assert kv_line.arithmetic == "16 layers x 4 heads x (256 + 256) x 2 B x 262144 tokens"


def test_three_verdicts() -> None:
    needed = judged(10 * GB, 100 * GB).needed_bytes
    assert judged(10 * GB, needed).verdict is FitVerdict.FITS
    beside = sum(line.bytes for line in judged(10 * GB, needed).host_lines)
    assert beside > 0
    assert judged(10 * GB, needed - 1, spill_bytes=beside + 1).verdict is FitVerdict.FITS_WITH_OFFLOAD
    assert judged(10 * GB, needed - 2, spill_bytes=beside + 1).verdict is FitVerdict.REFUSED
    assert judged(10 * GB, needed - 1, spill_bytes=beside + 1).offload_bytes == 1
    assert judged(10 * GB, needed, spill_bytes=beside - 1).verdict is FitVerdict.REFUSED  # the host's own part


def test_mlx_does_not_offload() -> None:
    assert judged(10 * GB, 5 * GB, backend="mlx-lm", spill_bytes=64 * GB).verdict is FitVerdict.REFUSED


def test_a_promise_is_never_more_than_what_is_free() -> None:
    """The agent refuses a start whose promise is not free; with a part on the CPU the device holds the rest only."""
    fit = judged(17_609_365_914, 24 * GB, spill_bytes=64 * GB)
    assert fit.verdict is FitVerdict.FITS_WITH_OFFLOAD
    assert 0 < fit.promised_bytes < 24 * GB
    assert judged(10 * GB, 100 * GB).promised_bytes == judged(10 * GB, 100 * GB).needed_bytes


def test_context_is_per_request() -> None:
    one, four = judged(GB, 500 * GB, parallel=1), judged(GB, 500 * GB, parallel=4)
    cache = {fit.lines[1].bytes for fit in (one, four)}
    assert cache == {65536 * 262144, 4 * 65536 * 262144}


def test_unknown_is_said_and_not_zero() -> None:
    assert judged(None, 24 * GB).verdict is FitVerdict.UNSPECIFIED
    assert "size" in judged(None, 24 * GB).unknown
    assert judged(GB, None).verdict is FitVerdict.UNSPECIFIED
    assert "VRAM" in judged(GB, None).unknown


def test_weights_alone_can_refuse_without_an_architecture() -> None:
    artifact = ModelArtifact(format="gguf", weights_bytes=30 * GB)
    pool = MemoryPool(kind="VRAM", free_bytes=24 * GB, total_bytes=24 * GB)
    use = BACKENDS["llama.cpp"].memory_use(4096, 0, True)
    assert judge_fit(artifact, None, use, pool, offloads=True).verdict is FitVerdict.REFUSED


def test_context_levels_halve_down_to_something_useful() -> None:
    assert context_levels(16384) == (16384, 8192, 4096)
    assert context_levels(2048) == (2048,)


def taken(
    weights_bytes: int, fraction: float, *, free_bytes: int, of_free_memory: bool = False, devices: int = 1
) -> Fit:
    """vLLM's or SGLang's verdict for the 4B model at 8192 tokens on cards with 25 GB each."""
    pool = MemoryPool(kind="VRAM", free_bytes=free_bytes, total_bytes=25 * GB * devices, devices=devices)
    use = BACKENDS["sglang"].memory_use(8192, 1, True)
    use = use.model_copy(update={"preallocation": Preallocation(fraction=fraction, of_free_memory=of_free_memory)})
    artifact = ModelArtifact(format="safetensors", weights_bytes=weights_bytes)
    return judge_fit(artifact, shape("qwen3.5-4b"), use, pool, offloads=False)


def test_a_server_that_takes_a_part_of_the_gpu_promises_all_of_it() -> None:
    fit = taken(9 * GB, 0.8, free_bytes=24 * GB)
    assert fit.verdict is FitVerdict.FITS
    assert fit.needed_bytes == fit.promised_bytes == sum(line.bytes for line in fit.lines) == 20 * GB
    assert fit.lines[-1].what == "taken beforehand"


def test_the_part_must_be_free_and_must_hold_the_model() -> None:
    assert taken(9 * GB, 0.8, free_bytes=20 * GB).verdict is FitVerdict.FITS
    assert taken(9 * GB, 0.8, free_bytes=20 * GB - 1).verdict is FitVerdict.REFUSED
    too_large = taken(20 * GB, 0.8, free_bytes=24 * GB)
    assert too_large.verdict is FitVerdict.REFUSED and too_large.free_bytes == 20 * GB
    assert "memory fraction of 0.8" in too_large.summary()


def test_a_part_of_what_is_free_shrinks_with_it() -> None:
    assert taken(9 * GB, 0.8, free_bytes=15 * GB, of_free_memory=True).needed_bytes == 12 * GB
    assert taken(12 * GB, 0.8, free_bytes=15 * GB, of_free_memory=True).verdict is FitVerdict.REFUSED


def test_what_is_dealt_out_evenly_must_fit_on_the_fullest_device() -> None:
    """Four cards of 25 GB: 96 GB are free together, but one has 18 GB, and the server wants 20 GB of each."""
    pool = MemoryPool(
        kind="VRAM", free_bytes=96 * GB, total_bytes=100 * GB, devices=4,
        by_device=((18 * GB, 25 * GB), *[(26 * GB, 25 * GB)] * 3),
    )  # fmt: skip
    use = BACKENDS["sglang"].memory_use(8192, 1, True)
    use = use.model_copy(update={"preallocation": Preallocation(fraction=0.8)})
    artifact = ModelArtifact(format="safetensors", weights_bytes=9 * GB)
    uneven = judge_fit(artifact, shape("qwen3.5-4b"), use, pool, offloads=False)
    assert uneven.verdict is FitVerdict.REFUSED and uneven.free_bytes == 72 * GB
    even = pool.model_copy(update={"by_device": ((24 * GB, 25 * GB),) * 4})
    assert judge_fit(artifact, shape("qwen3.5-4b"), use, even, offloads=False).verdict is FitVerdict.FITS


def test_heads_decide_over_how_many_gpus_a_model_goes() -> None:
    glm, qwen = shape("glm-4.7-flash"), shape("qwen3.5-4b")
    assert [glm.tensor_parallel_size(count) for count in (0, 1, 2, 3, 4, 8)] == [0, 1, 2, 2, 4, 5]
    assert [qwen.tensor_parallel_size(count) for count in (1, 2, 3, 4, 8)] == [1, 2, 2, 4, 8]
    assert [glm.cache_copies(count) for count in (0, 1, 4)] == [1, 1, 4]
    assert [qwen.cache_copies(count) for count in (1, 2, 4, 8)] == [1, 1, 1, 2]


def test_a_refusal_speaks_in_the_unit_of_its_arithmetic() -> None:
    fit = judged(30 << 30, 24 << 30)
    assert fit.verdict is FitVerdict.REFUSED
    assert fit.summary() == f"needs {fit.needed_bytes / (1 << 30):.1f} GiB, 24.0 GiB of VRAM free"
