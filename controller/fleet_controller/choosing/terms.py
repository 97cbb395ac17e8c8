"""The parts of the time that one token takes, as the cost model has them: what is known, and which factors it needs.

Decode: weights and cache over bandwidth, work of attention, recurrent state, a fixed cost a layer, the server's own.
Prefill: products and attention over arithmetic, weights once a micro-batch over bandwidth, a fixed cost a layer.
After Williams et al. 2009 (roofline) with sums instead of the maximum, since kernels run one after another.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from fleet_controller.choosing.priors import MATRIX_PER_VECTOR, OPERATIONS_PER_BYTE, Parameter
from fleet_controller.choosing.work import LLAMA_CPP, NEWEST_INSTRUCTIONS, Cell, EngineFacts, Phase

# A transposed copy touches a sector of 32 bytes for each value of 2 bytes on one side, and 2 bytes on the other.
TRANSPOSED_BYTES_PER_VALUE = 32 + 2
MOST_WMMA_HEAD = 256
# Scores of attention without flash attention: written, scaled and masked, normalised, read; 4 bytes each.
SCORE_BYTES = 4 * 4
TILE_TOKENS = 64
# Products are computed for tiles of tokens; an expert whose tokens fill half a tile costs a whole one.
EXPERT_TILE_TOKENS = 32
# 16-bit weights are multiplied and added (2 operations) where quantized ones take about ten.
OPERATIONS_OF_16_BITS = 0.2
_K_QUANTIZATION = re.compile(r"Q(\d)_K")
EXTRA_OPERATIONS_OF_BITS = {2: 26.0, 3: 15.0, 4: 4.0, 5: 4.0, 6: 4.0}
BYTES_OF_UNPACKED_WEIGHTS = 2 * 2  # written and read as 16-bit numbers


@dataclass(frozen=True, slots=True)
class NamedTerm:
    """Seconds per token before the factors, and the names of the factors; `what` is what a user is told."""

    what: str
    seconds: float
    parameters: tuple[Parameter, ...]


def terms_of(cell: Cell) -> tuple[NamedTerm, ...]:
    """All terms of a cell that are not zero."""
    parts = _decode(cell) if cell.phase is Phase.DECODE else _prefill(cell)
    return tuple(part for part in parts if part.seconds > 0)


def matrix_operations(cell: Cell) -> float:
    """The device's matrix operations/s that the engine's instructions reach, or what its bandwidth suggests."""
    device = cell.device
    rate = device.matrix_operations or device.bandwidth * OPERATIONS_PER_BYTE[device.kind.value]
    return rate if cell.engine.engine in NEWEST_INSTRUCTIONS else rate * device.older_instructions_share


def vector_operations(cell: Cell) -> float:
    """The device's 32-bit operations/s of vector units, or what its matrix units suggest."""
    device = cell.device
    matrix = device.matrix_operations or device.bandwidth * OPERATIONS_PER_BYTE[device.kind.value]
    return device.vector_operations or matrix / MATRIX_PER_VECTOR[device.kind.value]


def _decode(cell: Cell) -> Iterator[NamedTerm]:
    model, engine, bandwidth = cell.model, cell.engine, cell.device.bandwidth
    depth = cell.middle_depth
    everywhere = _everywhere(cell, "decode")
    if engine.speculation:
        kind = "experts" if model.mixture_of_experts else "dense"
        mine = ("decode.speculation", engine.key, cell.device.name, kind, engine.speculation)
        everywhere = (*everywhere, ("decode.speculation",), ("decode.speculation", engine.key), mine)
    waste, layer = _shared("decode.waste", engine), _layer("decode", cell)
    reading = (*everywhere, ("decode.quantization", cell.quantization, engine.key))
    if cell.is_bfloat:
        reading = (*reading, ("decode.bfloat", engine.key))
    if model.mixture_of_experts:
        waste, layer = (*waste, ("decode.experts",)), (*layer, ("decode.layer_experts",))
    seconds = cell.read_bytes / bandwidth
    yield NamedTerm("weights", seconds, reading)
    yield NamedTerm("bandwidth not reached", seconds, (*reading, *waste))
    share = OPERATIONS_OF_16_BITS if cell.is_16_bit else 1.0
    unpacking = share * model.parameters_read / vector_operations(cell)
    yield NamedTerm("unpacking", unpacking, (*reading, *_shared("decode.unpacking", engine)))
    yield NamedTerm("layers", model.layers, (*everywhere, *layer))
    cache = _shared("decode.cache", engine)
    yield NamedTerm("KV cache", model.cached_bytes(depth) / bandwidth, (*everywhere, *cache))
    scores = _shared("decode.scores", engine)
    yield NamedTerm("attention", model.score_operations(depth) / vector_operations(cell), (*everywhere, *scores))
    state = 2 * model.recurrent_state_bytes / bandwidth
    yield NamedTerm("recurrent state", state, (*everywhere, *_shared("decode.state", engine)))
    yield NamedTerm("copies of the latent cache", _latent_copy(cell), (*everywhere, ("decode.latent_copy",)))
    yield NamedTerm("server", float(engine.over_http), _shared("decode.request", engine))


def _latent_copy(cell: Cell) -> float:
    if cell.engine.engine != LLAMA_CPP or cell.engine.flash_attention or not cell.model.latent_length:
        return 0.0
    values = cell.model.attention_layers * cell.model.latent_length * cell.middle_depth
    return values * TRANSPOSED_BYTES_PER_VALUE / cell.device.bandwidth


def _prefill(cell: Cell) -> Iterator[NamedTerm]:
    model, engine, bandwidth = cell.model, cell.engine, cell.device.bandwidth
    batch = min(cell.tokens, engine.micro_batch_tokens)
    everywhere = _everywhere(cell, "prefill")
    rate = matrix_operations(cell)
    known = "prefill.device" if cell.device.matrix_operations else "prefill.unknown_device"
    arithmetic = (*everywhere, (known, cell.device.name))
    products = (*_shared("prefill.products", engine), ("prefill.quantization", cell.quantization, engine.key))
    if cell.is_bfloat:
        products = (*products, ("prefill.bfloat", engine.key))
    layer = _layer("prefill", cell)
    if model.mixture_of_experts:
        products = (*products, *_shared("prefill.experts", engine))
        layer = (*layer, ("prefill.layer_experts",))
    # Only the last token of a prompt goes through the head.
    operations = 2 * max(model.parameters_read - model.head_parameters, 0.0)
    yield NamedTerm("products", operations / rate, (*arithmetic, *products))
    part_filled = operations / rate * _empty_share(cell, batch)
    yield NamedTerm("part-filled experts", part_filled, (*arithmetic, *products, ("prefill.part_filled",)))
    unpacking = _extra_operations(cell) * model.parameters_read / vector_operations(cell) / TILE_TOKENS
    yield NamedTerm("unpacking", unpacking, (*arithmetic, *_shared("prefill.unpacking", engine)))
    scores = _shared("prefill.scores", engine)
    scoring = rate if _scores_on_matrix_units(cell) else vector_operations(cell)
    yield NamedTerm("attention", model.score_operations(cell.middle_depth) / scoring, (*arithmetic, *scores))
    softmax = model.attention_layers * model.query_heads * cell.middle_depth / vector_operations(cell)
    yield NamedTerm("softmax", softmax, (*arithmetic, *_shared("prefill.softmax", engine)))
    tile = TILE_TOKENS if engine.flash_attention else batch
    cache = model.cached_bytes(cell.middle_depth) / bandwidth / min(tile, batch)
    yield NamedTerm("KV cache", cache, (*everywhere, *_shared("prefill.cache", engine)))
    traffic = 0.0 if engine.flash_attention else model.attention_layers * model.query_heads * cell.middle_depth
    yield NamedTerm("scores", traffic * SCORE_BYTES / bandwidth, (*everywhere, ("prefill.score_traffic",)))
    unpacked = BYTES_OF_UNPACKED_WEIGHTS * model.parameters if engine.dequantizes and not cell.is_16_bit else 0.0
    read = (cell.weights_bytes + unpacked) / bandwidth / batch
    yield NamedTerm("weights", read, (*everywhere, *_shared("prefill.weights", engine)))
    yield NamedTerm("layers", model.layers / batch, (*everywhere, *layer))
    yield NamedTerm("server", float(engine.over_http) / cell.tokens, _shared("prefill.request", engine))


def _scores_on_matrix_units(cell: Cell) -> bool:
    """Whether flash attention of many tokens has a kernel for the matrix units.

    llama.cpp on an RDNA chip takes its tile kernel, which computes on vector units, for heads of more than 256 values,
    as multi-head latent attention has (ggml-cuda/fattn.cu of b11434, ggml_cuda_get_best_fattn_kernel:
    `amd_wmma_available && gqa_opt_applies && Q->ne[0] <= 256`).
    """
    engine = cell.engine
    tiles = engine.engine == LLAMA_CPP and engine.runtime == "rocm" and engine.flash_attention
    return not tiles or cell.model.key_length <= MOST_WMMA_HEAD


def _empty_share(cell: Cell, batch: int) -> float:
    """What a tile of tokens lacks for one expert, over what it has: the fewer tokens an expert sees, the more."""
    model = cell.model
    if not model.experts:
        return 0.0
    return EXPERT_TILE_TOKENS * model.experts / (batch * model.experts_active)


def _extra_operations(cell: Cell) -> float:
    """What llama.cpp's products of this quantization cost beyond those of one scale a block, for each weight and tile.

    From the speeds of one model on one card: 8B on the RTX 4090, 7639 t/s with Q2_K and 10359 with Q4_0; on the RTX
    3090, 3491 with Q6_K and 3655 with Q5_0 (llama.cpp pull requests 7676, 7860, 7921).
    """
    found = _K_QUANTIZATION.search(cell.quantization.upper()) if cell.engine.engine == LLAMA_CPP else None
    return EXTRA_OPERATIONS_OF_BITS.get(int(found[1]), 0.0) if found else 0.0


def _shared(kind: str, engine: EngineFacts) -> tuple[Parameter, ...]:
    """What all engines share, what one differs from that, and what one of its drivers differs from the engine.

    Drivers are compilers. In decode all but attention waits for memory, so there they have a factor for the scores of
    attention, which depth brings, and one for everything.
    """
    shared: tuple[Parameter, ...] = ((kind,), (kind, engine.key))
    compiled = kind.startswith("prefill.") or kind == "decode.scores"
    return (*shared, (kind, engine.key, engine.driver)) if engine.driver and compiled else shared


def _layer(phase: str, cell: Cell) -> tuple[Parameter, ...]:
    """Kernels are fused from version to version, so what a layer costs is a version's own."""
    engine = cell.engine
    layer = (*_shared(f"{phase}.layer", engine), (f"{phase}.layer_device", cell.device.name))
    return (*layer, (f"{phase}.layer_version", engine.key, engine.version)) if engine.version else layer


def _everywhere(cell: Cell, phase: str) -> tuple[Parameter, ...]:
    """The factors of all terms. A device whose memory nobody knows is off by one factor in all that waits for it."""
    engine, device = cell.engine, cell.device
    found: tuple[Parameter, ...] = ((f"{phase}.architecture", cell.model.name, engine.key),)
    if phase == "decode":
        found = (*found, ("decode.device", device.name))
        if device.guessed:
            found = (*found, ("decode.unknown_device", device.name))
        if engine.driver:
            found = (*found, ("decode.driver", engine.key, engine.driver))
    return (*found, (f"{phase}.version", engine.key, engine.version)) if engine.version else found


def log_seconds(term: NamedTerm) -> float:
    return math.log(term.seconds)
