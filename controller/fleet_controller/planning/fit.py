"""Does a model fit? What its engine takes of memory (planning/fitting) and a reserve, against live free memory."""

from fleet_controller.backends.base import MemoryUse
from fleet_controller.domain.base import Frozen
from fleet_controller.domain.plan import FitLine, FitVerdict
from fleet_controller.domain.resolved import ModelArtifact
from fleet_controller.domain.shape import ModelShape
from fleet_controller.domain.sizes import gibibytes
from fleet_controller.planning.devices import MemoryPool
from fleet_controller.planning.fitting.correction import NO_CORRECTION, Correction
from fleet_controller.planning.fitting.general import general_sum
from fleet_controller.planning.fitting.lines import CACHES, CORRECTION, RESERVE, TAKEN_BEFOREHAND, Sum
from fleet_controller.planning.fitting.llama_cpp import ENGINE as LLAMA_CPP
from fleet_controller.planning.fitting.llama_cpp import llama_cpp_sum
from fleet_controller.planning.fitting.offload import offload_cost

# A context below this is of no use to anybody; llama.cpp's --fit-ctx has the same floor.
SMALLEST_CONTEXT = 4096


class Fit(Frozen):
    """A verdict with its arithmetic. UNSPECIFIED: something was not known, `unknown` says what.

    `offload_bytes` is the part that would lie on the CPU, `offload_cost` what that costs; `promised_bytes` what the
    service may take of the pool: the agent looks whether it is still free right before the start. `host_lines` lie in
    the host's memory beside a GPU.
    """

    verdict: FitVerdict
    lines: tuple[FitLine, ...] = ()
    needed_bytes: int = 0
    free_bytes: int | None = None
    offload_bytes: int = 0
    promised_bytes: int = 0
    memory_kind: str = ""
    unknown: str = ""
    host_lines: tuple[FitLine, ...] = ()
    offload_cost: str = ""

    @property
    def cache_bytes(self) -> int:
        """What grows with context and slots, together."""
        return sum(line.bytes for line in self.lines if line.what in CACHES)

    @property
    def predicted_bytes(self) -> int:
        """What the server itself is expected to hold of the pool: all but the reserve, and but what it takes anyway."""
        return sum(line.bytes for line in self.lines if line.what not in (RESERVE, TAKEN_BEFOREHAND))

    @property
    def margin_bytes(self) -> int | None:
        """What is left of the pool, negative where it lacks; None where nobody knows what is free."""
        return None if self.free_bytes is None else self.free_bytes - self.needed_bytes

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
    correction: Correction = NO_CORRECTION,
) -> Fit:
    """The verdict for one artifact. `use.context_tokens` are those of all sequences together.

    `reserve_bytes` replaces the backend's own reserve (limits.memory_reserve of hosts.yaml).
    """
    total = fit_sum(artifact, shape, use, pool.devices, reserve_bytes, correction)
    reserve = sum(line.bytes for line in total.device if line.what == RESERVE)
    lines, pool = _preallocated(total.device, use, pool)
    needed = sum(line.bytes for line in lines)
    unknown = _unknown(artifact, shape, pool)
    offload = 0 if pool.free_bytes is None else max(needed - pool.free_bytes, 0)
    lacks_ram = 0 < pool.spill_bytes < offload + total.host_bytes
    if unknown and not (offload and artifact.weights_bytes is not None and pool.free_bytes is not None):
        verdict = FitVerdict.UNSPECIFIED
    elif offload == 0 and not lacks_ram:
        verdict = FitVerdict.FITS
    elif offloads and offload and offload <= pool.spill_bytes and not lacks_ram:
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
        host_lines=total.host,
        offload_cost=offload_cost(artifact, shape, offload) if verdict is FitVerdict.FITS_WITH_OFFLOAD else "",
    )


def fit_sum(
    artifact: ModelArtifact,
    shape: ModelShape | None,
    use: MemoryUse,
    devices: int,
    reserve_bytes: int | None = None,
    correction: Correction = NO_CORRECTION,
) -> Sum:
    """What is added up, each with how it comes about: the engine's own, the correction, and the reserve."""
    rules = llama_cpp_sum if use.engine == LLAMA_CPP else general_sum
    total = rules(artifact, shape, use, devices)
    device = list(total.device)
    learnt = correction.of(total.device_bytes)
    if learnt:
        device.append(FitLine(what=CORRECTION, bytes=learnt, arithmetic=correction.text()))
    reserve = _reserve(use, devices, sum(line.bytes for line in device), reserve_bytes)
    if reserve.bytes:
        device.append(reserve)
    return total.model_copy(update={"device": tuple(device)})


def _reserve(use: MemoryUse, devices: int, summed_bytes: int, asked_bytes: int | None) -> FitLine:
    if asked_bytes is not None:
        return FitLine(what=RESERVE, bytes=asked_bytes, arithmetic="limits.memory_reserve of hosts.yaml")
    flat = use.reserve_bytes_per_device * devices
    share = int(summed_bytes * use.reserve_share)
    if use.reserve_share and share < flat:
        return FitLine(what=RESERVE, bytes=share, arithmetic=f"{use.reserve_share:.0%} of the above")
    what = "that llama-server keeps free (--fit-target)" if use.engine and use.on_gpu else "for compute buffers"
    arithmetic = f"{devices} x {use.reserve_bytes_per_device / 2**20:.0f} MiB {what}"
    return FitLine(what=RESERVE, bytes=flat, arithmetic=arithmetic)


def _preallocated(
    lines: tuple[FitLine, ...], use: MemoryUse, pool: MemoryPool
) -> tuple[tuple[FitLine, ...], MemoryPool]:
    """For a server that takes a fixed part of each device: all must fit into that part, and the part must be free.

    Where all fits into the part, what is left of it is one more line; else the pool is no larger than the part.
    """
    taken = use.preallocation
    pool = pool.evenly() if taken is not None else pool
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
    return (*lines, FitLine(what=TAKEN_BEFOREHAND, bytes=rest, arithmetic=arithmetic)), pool


def _unknown(artifact: ModelArtifact, shape: ModelShape | None, pool: MemoryPool) -> str:
    if artifact.weights_bytes is None:
        return "the size of the model is not known before the host opens it"
    if pool.free_bytes is None:
        return f"the host does not tell how much {pool.kind} is free"
    if shape is None:
        return "the model's architecture is not known, so its KV cache is not counted"
    return ""


def context_levels(longest: int) -> tuple[int, ...]:
    """Contexts to try when nobody asked for one: the longest, then halves, down to SMALLEST_CONTEXT."""
    levels = [longest]
    while levels[-1] // 2 >= SMALLEST_CONTEXT:
        levels.append(levels[-1] // 2)
    return tuple(levels)
