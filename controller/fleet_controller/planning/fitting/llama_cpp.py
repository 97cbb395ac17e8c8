"""What llama-server takes, as llama.cpp allocates it: weights by their place, caches by slots, buffers by its graph.

Sources: src/llama-model.cpp (which tensor lies where), src/llama-kv-cache.cpp, src/llama-kv-cache-iswa.cpp and
src/llama-memory-recurrent.cpp (caches), src/llama-context.cpp (padding, reserving the worst graph) of b11434.
"""

from fleet_controller.backends.base import MemoryUse
from fleet_controller.domain.plan import FitLine
from fleet_controller.domain.resolved import ModelArtifact
from fleet_controller.domain.shape import F32_BYTES, ModelShape
from fleet_controller.domain.sizes import gibibytes
from fleet_controller.domain.weights import WeightParts
from fleet_controller.planning.fitting.lines import (
    CHECKPOINTS,
    COMPUTE,
    CONTEXT,
    DRAFT,
    KV_CACHE,
    PROCESS,
    RECURRENT_STATE,
    WEIGHTS,
    WINDOW_CACHE,
    Sum,
)
from fleet_controller.planning.fitting.llama_cpp_graph import compute_bytes, input_bytes

ENGINE = "llama.cpp"
# Cells of a cache come in multiples of this (llama-context.cpp, llama-kv-cache-iswa.cpp).
PADDING_TOKENS = 256
# With several GPUs, batches go through them as through a pipeline: inputs are kept so often (GGML_SCHED_MAX_COPIES).
PIPELINE_COPIES = 4


# What a vocabulary takes beside its tensor, for each token: its text, its number, and the way from one to the other.
# Resident memory with 4,096, 62,080 and 248,320 tokens (docs/memory_fit.md).
VOCABULARY_BYTES_PER_TOKEN = 184
# Copies of a sequence's state that a server keeps from its first prompt on: at its start and near its end. It keeps
# more as a conversation grows (--ctx-checkpoints, 32 a slot, 8,192 tokens apart).
FIRST_CHECKPOINTS = 2


def padded(tokens: int) -> int:
    return -(-tokens // PADDING_TOKENS) * PADDING_TOKENS


def llama_cpp_sum(artifact: ModelArtifact, shape: ModelShape | None, use: MemoryUse, devices: int) -> Sum:
    """Every line but reserve and correction. Without a header the file's size stands for its parts."""
    device, host = _weight_lines(artifact, shape, use)
    if shape is not None:
        device += _cache_lines(shape, use)
        if use.uses_nextn:
            device += _draft_lines(artifact.parts, shape, use)
        compute, beside = _compute_lines(shape, use, devices)
        device, host = device + compute, host + beside
    if use.on_gpu and use.discrete and use.context_bytes_per_device:
        text = f"{devices} x {use.context_bytes_per_device >> 20} MiB: driver, kernels, cuBLAS, CUDA graphs, scratch"
        device.append(FitLine(what=CONTEXT, bytes=devices * use.context_bytes_per_device, arithmetic=text))
    if artifact.parts is not None and shape is not None:
        (host if use.on_gpu and use.discrete else device).extend(_own_lines(shape, use))
    return Sum(device=tuple(device), host=tuple(host))


def _weight_lines(
    artifact: ModelArtifact, shape: ModelShape | None, use: MemoryUse
) -> tuple[list[FitLine], list[FitLine]]:
    if artifact.weights_bytes is None:
        return [], []
    source = f"{artifact.quantization or 'model'}, {artifact.format} files"
    parts = artifact.parts
    if parts is None:
        return [FitLine(what=WEIGHTS, bytes=artifact.weights_bytes, arithmetic=source)], []
    projector = artifact.projector.size_bytes if artifact.projector is not None and artifact.sees else 0
    size, beside = parts.total_bytes, []
    source = f"{artifact.quantization or 'model'}, {_count(parts, shape)}"
    if parts.nextn_bytes:
        size -= parts.nextn_bytes
        if not use.uses_nextn:
            source += f", without {gibibytes(parts.nextn_bytes)} of MTP heads, which are not loaded"
    if use.on_gpu and use.discrete:
        # A tied embedding is loaded twice: on the CPU to look tokens up, on the GPU as the head.
        tied = not parts.output_bytes
        size -= 0 if tied else parts.embedding_bytes
        what = "is on the CPU as well (tied)" if tied else "stays on the CPU"
        source += f"; the token embedding ({gibibytes(parts.embedding_bytes)}) {what}"
        beside = [FitLine(what="token embedding", bytes=parts.embedding_bytes, arithmetic="looked up by the CPU")]
    if projector:
        size += projector
        source += f", with {gibibytes(projector)} of projector"
    return [FitLine(what=WEIGHTS, bytes=size, arithmetic=source)], beside


def _count(parts: WeightParts, shape: ModelShape | None) -> str:
    layers = len(parts.block_bytes) or (shape.layers if shape else 0)
    return f"{layers} layers by their tensors"


def _cache_lines(shape: ModelShape, use: MemoryUse) -> list[FitLine]:
    tokens, lines = use.context_tokens, []
    if shape.kv_layers:
        size = shape.kv_bytes_per_token(use.bytes_per_cached_value) * tokens
        arithmetic = f"{shape.kv_arithmetic(use.bytes_per_cached_value)} x {tokens} tokens"
        lines.append(FitLine(what=KV_CACHE, bytes=size, arithmetic=arithmetic))
    if shape.window_layers:
        cells = _window_cells(shape, use)
        size = shape.window_bytes_of(cells, use.bytes_per_cached_value)
        arithmetic = f"{shape.window_layers} layers with a window of {shape.window_tokens}, {cells} cells"
        lines.append(FitLine(what=WINDOW_CACHE, bytes=size, arithmetic=arithmetic))
    if shape.recurrent_layers:
        kept = use.sequences * (1 + use.rollback_states)
        values = shape.recurrent_values_per_layer + shape.convolution_values_per_layer
        again = f" x {1 + use.rollback_states} for taking drafts back" if use.rollback_states else ""
        arithmetic = f"{shape.recurrent_layers} layers x {values} x 4 B x {use.sequences} slots{again}"
        size = shape.recurrent_bytes_per_sequence() * kept
        lines.append(FitLine(what=RECURRENT_STATE, bytes=size, arithmetic=arithmetic))
    return lines


def _own_lines(shape: ModelShape, use: MemoryUse) -> list[FitLine]:
    """What lies in the host's memory whatever computes: the program, the vocabulary, logits, and states kept aside."""
    vocabulary = shape.vocabulary * VOCABULARY_BYTES_PER_TOKEN
    logits = use.sequences * shape.vocabulary * F32_BYTES
    text = f"the program, a vocabulary of {shape.vocabulary} tokens, logits of {use.sequences} slots"
    lines = [FitLine(what=PROCESS, bytes=use.process_bytes + vocabulary + logits, arithmetic=text)]
    if shape.recurrent_layers or shape.window_layers:
        window = shape.window_bytes_of(shape.window_tokens, use.bytes_per_cached_value)
        state = shape.recurrent_bytes_per_sequence() + window
        text = f"{FIRST_CHECKPOINTS} x {gibibytes(state)}; a long conversation has more of them (--ctx-checkpoints)"
        lines.append(FitLine(what=CHECKPOINTS, bytes=FIRST_CHECKPOINTS * state, arithmetic=text))
    return lines


def _window_cells(shape: ModelShape, use: MemoryUse) -> int:
    """A window and one micro batch for each slot; one cache for all of them where they share it."""
    if use.unified_cache:
        return padded(min(use.context_tokens, shape.window_tokens * use.sequences + use.micro_batch_tokens))
    per_slot = use.context_tokens // max(use.sequences, 1)
    return padded(min(per_slot, shape.window_tokens + use.micro_batch_tokens)) * use.sequences


def _draft_lines(parts: WeightParts | None, shape: ModelShape, use: MemoryUse) -> list[FitLine]:
    """The MTP head as a context of its own: its weights, one layer's cache, and its graph."""
    weights = parts.nextn_bytes if parts is not None else 0
    layer = shape.model_copy(update={"kv_layers": 1, "recurrent_layers": 0, "convolution_channels": 0})
    cache = layer.kv_bytes_per_token(use.bytes_per_cached_value) * use.context_tokens
    graph = compute_bytes(layer, use)
    text = f"weights {gibibytes(weights)}, its cache {gibibytes(cache)}, its buffers {gibibytes(graph)}"
    return [FitLine(what=DRAFT, bytes=weights + cache + graph, arithmetic=text)]


def _compute_lines(shape: ModelShape, use: MemoryUse, devices: int) -> tuple[list[FitLine], list[FitLine]]:
    one = compute_bytes(shape, use)
    if not one:
        return [], []
    inputs = input_bytes(shape, use)
    copies = (PIPELINE_COPIES - 1) * inputs if devices > 1 else 0
    attention = "" if use.flash_attention else ", without flash attention"
    arithmetic = f"a batch of {use.micro_batch_tokens} tokens at context {use.context_tokens}{attention}"
    if devices > 1:
        arithmetic += f", on {devices} devices with {PIPELINE_COPIES} sets of inputs"
    device = [FitLine(what=COMPUTE, bytes=devices * (one + copies), arithmetic=arithmetic)]
    if not (use.on_gpu and use.discrete):
        return device, []
    return device, [FitLine(what=COMPUTE, bytes=inputs, arithmetic="inputs, in memory that the GPU reads")]
