"""Does a model fit? Weights, KV cache at that context, recurrent state and a reserve, against live free memory."""

from fleet_controller.backends.base import MemoryUse
from fleet_controller.domain.base import Frozen
from fleet_controller.domain.plan import FitLine, FitVerdict
from fleet_controller.domain.resolved import ModelArtifact
from fleet_controller.domain.shape import ModelShape
from fleet_controller.domain.sizes import gibibytes
from fleet_controller.planning.devices import MemoryPool

# A context below this is of no use to anybody; llama.cpp's --fit-ctx has the same floor.
SMALLEST_CONTEXT = 4096
RESERVE = "reserve"
KV_CACHE, WINDOW_CACHE, RECURRENT_STATE = "KV cache", "window cache", "recurrent state"


class Fit(Frozen):
    """A verdict with its arithmetic. UNSPECIFIED: something was not known, `unknown` says what.

    `offload_bytes` is the part that would lie on the CPU; `promised_bytes` what the service may take of the pool: the
    agent looks whether it is still free right before the start.
    """

    verdict: FitVerdict
    lines: tuple[FitLine, ...] = ()
    needed_bytes: int = 0
    free_bytes: int | None = None
    offload_bytes: int = 0
    promised_bytes: int = 0
    memory_kind: str = ""
    unknown: str = ""

    @property
    def cache_bytes(self) -> int:
        """What grows with context and slots, together."""
        cached = (KV_CACHE, WINDOW_CACHE, RECURRENT_STATE)
        return sum(line.bytes for line in self.lines if line.what in cached)

    def summary(self) -> str:
        """As "needs 33.8 GiB, 23.3 GiB of VRAM free"."""
        free = "an unknown amount" if self.free_bytes is None else gibibytes(self.free_bytes)
        return f"needs {gibibytes(self.needed_bytes)}, {free} of {self.memory_kind} free"


def judge_fit(
    artifact: ModelArtifact,
    shape: ModelShape | None,
    use: MemoryUse,
    pool: MemoryPool,
    *,
    offloads: bool,
    reserve_bytes: int | None = None,
) -> Fit:
    """The verdict for one artifact. `use.context_tokens` are those of all sequences together.

    `reserve_bytes` replaces the backend's own reserve (limits.memory_reserve of hosts.yaml).
    """
    lines = fit_lines(artifact, shape, use, pool.devices, reserve_bytes)
    reserve = sum(line.bytes for line in lines if line.what == RESERVE)
    lines, pool = _preallocated(lines, use, pool)
    needed = sum(line.bytes for line in lines)
    unknown = _unknown(artifact, shape, pool)
    offload = 0 if pool.free_bytes is None else max(needed - pool.free_bytes, 0)
    if unknown and not (offload and artifact.weights_bytes is not None and pool.free_bytes is not None):
        verdict = FitVerdict.UNSPECIFIED
    elif offload == 0:
        verdict = FitVerdict.FITS
    elif offloads and offload <= pool.spill_bytes:
        verdict = FitVerdict.FITS_WITH_OFFLOAD
    else:
        verdict = FitVerdict.REFUSED
    return Fit(
        verdict=verdict,
        lines=lines,
        needed_bytes=needed,
        free_bytes=pool.free_bytes,
        offload_bytes=offload,
        promised_bytes=needed if offload == 0 else max(needed - offload - reserve, 0),
        memory_kind=pool.kind,
        unknown=unknown,
    )


def _preallocated(
    lines: tuple[FitLine, ...], use: MemoryUse, pool: MemoryPool
) -> tuple[tuple[FitLine, ...], MemoryPool]:
    """For a server that takes a fixed part of each device: all must fit into that part, and the part must be free.

    Where all fits into the part, what is left of it is one more line; else the pool is no larger than the part.
    """
    taken = use.preallocation
    whole = None if taken is None else pool.free_bytes if taken.of_free_memory else pool.total_bytes
    if taken is None or whole is None or pool.free_bytes is None:
        return lines, pool
    part = int(whole * taken.fraction)
    rest = part - sum(line.bytes for line in lines)
    if rest < 0:
        kind = f"{pool.kind} within its memory fraction of {taken.fraction:g}"
        return lines, pool.model_copy(update={"free_bytes": min(part, pool.free_bytes), "kind": kind})
    of_what = "free" if taken.of_free_memory else "all"
    arithmetic = f"the server takes {taken.fraction:g} of {of_what} {gibibytes(whole)} at its start, less the above"
    return (*lines, FitLine(what="taken beforehand", bytes=rest, arithmetic=arithmetic)), pool


def _unknown(artifact: ModelArtifact, shape: ModelShape | None, pool: MemoryPool) -> str:
    if artifact.weights_bytes is None:
        return "the size of the model is not known before the host opens it"
    if pool.free_bytes is None:
        return f"the host does not tell how much {pool.kind} is free"
    if shape is None:
        return "the model's architecture is not known, so its KV cache is not counted"
    return ""


def fit_lines(
    artifact: ModelArtifact, shape: ModelShape | None, use: MemoryUse, devices: int, reserve_bytes: int | None = None
) -> tuple[FitLine, ...]:
    """What is added up, each with how it comes about."""
    lines = []
    if artifact.weights_bytes is not None:
        source = f"{artifact.quantization or 'model'}, {artifact.format} files"
        lines.append(FitLine(what="weights", bytes=artifact.weights_bytes, arithmetic=source))
    if shape is not None:
        copies = shape.cache_copies(devices) if use.preallocation else 1
        lines += _cache_lines(shape, use, copies)
    reserve = use.reserve_bytes_per_device * devices if reserve_bytes is None else reserve_bytes
    per_device = f"{devices} x {use.reserve_bytes_per_device / 2**20:.0f} MiB for compute buffers"
    reserve_text = per_device if reserve_bytes is None else "limits.memory_reserve of hosts.yaml"
    if reserve:
        lines.append(FitLine(what=RESERVE, bytes=reserve, arithmetic=reserve_text))
    return tuple(lines)


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
        state = f"{shape.recurrent_layers} layers x {shape.recurrent_values_per_layer} x 4 B x {use.sequences} slots"
        size = shape.recurrent_bytes_per_sequence() * use.sequences
        lines.append(FitLine(what=RECURRENT_STATE, bytes=size, arithmetic=state))
    return lines


def context_levels(longest: int) -> tuple[int, ...]:
    """Contexts to try when nobody asked for one: the longest, then halves, down to SMALLEST_CONTEXT."""
    levels = [longest]
    while levels[-1] // 2 >= SMALLEST_CONTEXT:
        levels.append(levels[-1] // 2)
    return tuple(levels)
