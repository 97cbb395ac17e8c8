"""What any engine takes: the files, the caches of its context, and what it says that it reserves."""

from fleet_controller.backends.base import MemoryUse
from fleet_controller.domain.plan import FitLine
from fleet_controller.domain.resolved import ModelArtifact
from fleet_controller.domain.shape import ModelShape
from fleet_controller.planning.fitting.lines import KV_CACHE, RECURRENT_STATE, WEIGHTS, WINDOW_CACHE, Sum


def general_sum(artifact: ModelArtifact, shape: ModelShape | None, use: MemoryUse, devices: int) -> Sum:
    """Every line but reserve and correction."""
    lines = []
    if artifact.weights_bytes is not None:
        source = f"{artifact.quantization or 'model'}, {artifact.format} files"
        lines.append(FitLine(what=WEIGHTS, bytes=artifact.weights_bytes, arithmetic=source))
    if shape is not None:
        lines += _cache_lines(shape, use, shape.cache_copies(devices) if use.preallocation else 1)
    return Sum(device=tuple(lines))


def _cache_lines(shape: ModelShape, use: MemoryUse, copies: int) -> list[FitLine]:
    tokens = use.context_tokens
    lines = []
    if shape.kv_layers:
        on_each = f" x {copies} copies (tensor parallel)" if copies > 1 else ""
        arithmetic = f"{shape.kv_arithmetic(use.bytes_per_cached_value)} x {tokens} tokens{on_each}"
        size = shape.kv_bytes_per_token(use.bytes_per_cached_value) * tokens * copies
        lines.append(FitLine(what=KV_CACHE, bytes=size, arithmetic=arithmetic))
    if shape.window_layers:
        window = f"{shape.window_layers} layers with a window of {shape.window_tokens} tokens, {use.sequences} slots"
        size = shape.window_bytes(tokens, use.bytes_per_cached_value) * use.sequences
        lines.append(FitLine(what=WINDOW_CACHE, bytes=size, arithmetic=window))
    if shape.recurrent_layers:
        values = shape.recurrent_values_per_layer + shape.convolution_values_per_layer
        state = f"{shape.recurrent_layers} layers x {values} x 4 B x {use.sequences} slots"
        size = shape.recurrent_bytes_per_sequence() * use.sequences
        lines.append(FitLine(what=RECURRENT_STATE, bytes=size, arithmetic=state))
    return lines
