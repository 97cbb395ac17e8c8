"""The parts of the time that one token takes, as the cost model has them: what is known, and which factors it needs.

Decode: weights and cache over bandwidth, work of attention, recurrent state, a fixed cost a layer, the server's own.
Prefill: products and attention over arithmetic, weights once a micro-batch over bandwidth, a fixed cost a layer.
After Williams et al. 2009 (roofline) with sums instead of the maximum, since kernels run one after another.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fleet_controller.choosing.priors import MATRIX_PER_VECTOR, OPERATIONS_PER_BYTE, Parameter
from fleet_controller.choosing.work import LLAMA_CPP, NEWEST_INSTRUCTIONS, Cell, Phase

# A transposed copy touches a sector of 32 bytes for each value of 2 bytes on one side, and 2 bytes on the other.
TRANSPOSED_BYTES_PER_VALUE = 32 + 2
# Scores of attention without flash attention: written, scaled and masked, normalised, read; 4 bytes each.
SCORE_BYTES = 4 * 4
ATTENTION_TILE_TOKENS = 64
# 16-bit weights are multiplied and added (2 operations) where quantized ones take about ten.
OPERATIONS_OF_16_BITS = 0.2
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
        everywhere = (*everywhere, ("decode.speculation",), ("decode.speculation", engine.key))
    waste, layer = _shared("decode.waste", engine.key), _layer("decode", cell)
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
    yield NamedTerm("unpacking", unpacking, (*reading, *_shared("decode.unpacking", engine.key)))
    yield NamedTerm("layers", model.layers, (*everywhere, *layer))
    cache = _shared("decode.cache", engine.key)
    yield NamedTerm("KV cache", model.cached_bytes(depth) / bandwidth, (*everywhere, *cache))
    scores = _shared("decode.scores", engine.key)
    yield NamedTerm("attention", model.score_operations(depth) / vector_operations(cell), (*everywhere, *scores))
    state = 2 * model.recurrent_state_bytes / bandwidth
    yield NamedTerm("recurrent state", state, (*everywhere, *_shared("decode.state", engine.key)))
    yield NamedTerm("copies of the latent cache", _latent_copy(cell), (*everywhere, ("decode.latent_copy",)))
    yield NamedTerm("server", float(engine.over_http), _shared("decode.request", engine.key))


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
    products = (*_shared("prefill.products", engine.key), ("prefill.quantization", cell.quantization, engine.key))
    if cell.is_bfloat:
        products = (*products, ("prefill.bfloat", engine.key))
    layer = _layer("prefill", cell)
    if model.mixture_of_experts:
        products = (*products, *_shared("prefill.experts", engine.key))
        layer = (*layer, ("prefill.layer_experts",))
    # Only the last token of a prompt goes through the head.
    operations = 2 * max(model.parameters_read - model.head_parameters, 0.0)
    yield NamedTerm("products", operations / rate, (*arithmetic, *products))
    scores = _shared("prefill.scores", engine.key)
    yield NamedTerm("attention", model.score_operations(cell.middle_depth) / rate, (*arithmetic, *scores))
    tile = ATTENTION_TILE_TOKENS if engine.flash_attention else batch
    cache = model.cached_bytes(cell.middle_depth) / bandwidth / min(tile, batch)
    yield NamedTerm("KV cache", cache, (*everywhere, *_shared("prefill.cache", engine.key)))
    traffic = 0.0 if engine.flash_attention else model.attention_layers * model.query_heads * cell.middle_depth
    yield NamedTerm("scores", traffic * SCORE_BYTES / bandwidth, (*everywhere, ("prefill.score_traffic",)))
    unpacked = BYTES_OF_UNPACKED_WEIGHTS * model.parameters if engine.dequantizes and not cell.is_16_bit else 0.0
    read = (cell.weights_bytes + unpacked) / bandwidth / batch
    yield NamedTerm("weights", read, (*everywhere, *_shared("prefill.weights", engine.key)))
    yield NamedTerm("layers", model.layers / batch, (*everywhere, *layer))
    yield NamedTerm("server", float(engine.over_http) / cell.tokens, _shared("prefill.request", engine.key))


def _shared(kind: str, key: str) -> tuple[Parameter, ...]:
    return (kind,), (kind, key)


def _layer(phase: str, cell: Cell) -> tuple[Parameter, ...]:
    """Kernels are fused from version to version, so what a layer costs is a version's own."""
    engine = cell.engine
    layer = _shared(f"{phase}.layer", engine.key)
    return (*layer, (f"{phase}.layer_version", engine.key, engine.version)) if engine.version else layer


def _everywhere(cell: Cell, phase: str) -> tuple[Parameter, ...]:
    engine = cell.engine
    found: tuple[Parameter, ...] = ((f"{phase}.architecture", cell.model.name, engine.key),)
    if phase == "decode":
        found = (*found, ("decode.device", cell.device.name))
    return (*found, (f"{phase}.version", engine.key, engine.version)) if engine.version else found


def log_seconds(term: NamedTerm) -> float:
    return math.log(term.seconds)
