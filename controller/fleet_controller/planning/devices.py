"""Which memory a service may use on a host, how much of it is free, and who else is on the device."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from fleet_controller.domain.base import Frozen
from fleet_controller.domain.facts import GpuFacts, GpuProcess, HostFacts
from fleet_controller.domain.services import DesiredState, ServiceState, ServiceStatus, Successor
from fleet_controller.planning.fitting.correction import Corrections
from fleet_controller.planning.problem import PlanProblem

VRAM = "VRAM"
UNIFIED = "unified"
RAM = "RAM"


class MemoryPool(Frozen):
    """Memory that a model must fit into. None: nobody could read it.

    `free_bytes` is the smaller of two ledgers: what the device says, and what our other services left of the total.
    `spill_bytes` is memory outside the pool that a backend with offload may use for the rest of a model. `device` is
    what the memory belongs to, as corrections are kept for it; `corrections` is what servers took on hosts like this.
    `by_device` has (free, total) of each GPU where all are known.
    """

    kind: str
    free_bytes: int | None
    total_bytes: int | None
    spill_bytes: int = 0
    devices: int = 1
    device: str = ""
    corrections: Corrections = Corrections()
    by_device: tuple[tuple[int, int], ...] = ()

    def evenly(self) -> "MemoryPool":
        """The pool for a server that deals the same amount to each device: the fullest one counts for all of them."""
        if len(self.by_device) < 2 or self.free_bytes is None:
            return self
        free, total = (min(values) * len(values) for values in zip(*self.by_device, strict=True))
        return self.model_copy(update={"free_bytes": min(self.free_bytes, free), "total_bytes": total})


def device_name(facts: HostFacts, gpus: tuple[GpuFacts, ...]) -> str:
    """As "2 x NVIDIA H100 80GB HBM3", "Apple M4 Pro", or the CPU's model."""
    if gpus:
        names = list(dict.fromkeys(gpu.name for gpu in gpus))
        return f"{len(gpus)} x {' + '.join(names)}"
    return (facts.apple.chip if facts.apple is not None else None) or facts.cpu.model


def tells_power(gpus: Sequence[GpuFacts]) -> bool:
    """Whether the energy of what runs on these can be measured."""
    return bool(gpus) and all(gpu.power_draw_watts is not None for gpu in gpus)


def visible_gpus(facts: HostFacts, environment: Mapping[str, str]) -> tuple[GpuFacts, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES names (indices or UUIDs, up to the first it does not know); all when unset."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return facts.gpus
    chosen: list[GpuFacts] = []
    for word in (part.strip() for part in named.split(",")):
        found = next((gpu for gpu in facts.gpus if _is_named(gpu, word)), None)
        if found is None:
            break  # as the CUDA runtime does: what follows an unknown device is invisible
        chosen.append(found)
    return tuple(chosen)


def _is_named(gpu: GpuFacts, word: str) -> bool:
    return str(gpu.index) == word or (word.startswith("GPU-") and gpu.uuid.startswith(word))


def foreign_processes(gpus: tuple[GpuFacts, ...]) -> tuple[GpuProcess, ...]:
    """Processes of other people or programs that compute, largest first. What only draws is a desktop, no job."""
    found = {process.pid: process for gpu in gpus for process in gpu.processes if not process.ours}
    others = [process for process in found.values() if process.compute is not False]
    return tuple(sorted(others, key=lambda process: -(process.memory_bytes or 0)))


def busy_text(process: GpuProcess, taken_unix_ms: int) -> str:
    """As "busy: alice, python, 18.2 GB since 14:02 UTC"; the day is added when it is not that of the facts."""
    parts = [process.user or "unknown user", process.command or f"pid {process.pid}"]
    amount = "memory unknown" if process.memory_bytes is None else f"{process.memory_bytes / 1e9:.1f} GB"
    if process.started_unix_ms is not None:
        started = datetime.fromtimestamp(process.started_unix_ms / 1000, UTC)
        same_day = started.date() == datetime.fromtimestamp(taken_unix_ms / 1000, UTC).date()
        amount += f" since {started:%H:%M} UTC" if same_day else f" since {started:%Y-%m-%d %H:%M} UTC"
    return "busy: " + ", ".join([*parts, amount])


def refuse_leased(facts: HostFacts, gpu_indices: Sequence[int]) -> None:
    """Raises PlanProblem "leased" where a bench has these devices for itself; naming none means the whole host."""
    for lease in facts.leases:
        if not gpu_indices or not lease.gpu_indices or set(gpu_indices) & set(lease.gpu_indices):
            since = datetime.fromtimestamp(lease.since_unix_ms / 1000, UTC)
            message = f"busy: {lease.title} since {since:%H:%M} UTC"
            raise PlanProblem("leased", message, "wait until it has ended: --wait does", refused=True)


def memory_pool(
    facts: HostFacts,
    gpus: tuple[GpuFacts, ...],
    services: tuple[ServiceStatus, ...],
    replaced: ServiceStatus | None = None,
) -> MemoryPool:
    """The pool of a new service. What `replaced` holds counts as free: it ends before the new one starts."""
    pool = _pool(facts, gpus, services, replaced)
    learnt = Corrections(observations=facts.observed_memory)
    return pool.model_copy(update={"device": device_name(facts, gpus), "corrections": learnt})


def _pool(
    facts: HostFacts,
    gpus: tuple[GpuFacts, ...],
    services: tuple[ServiceStatus, ...],
    replaced: ServiceStatus | None,
) -> MemoryPool:
    others = tuple(
        status
        for status in services
        if status.desired is DesiredState.RUNNING and (replaced is None or status.spec.name != replaced.spec.name)
    )
    if gpus:
        return _vram(facts, gpus, others, replaced)
    if facts.apple is not None:
        return _unified(facts, others, replaced)
    returned = _returned(replaced, on_device=False) if replaced else 0
    free = _both_ledgers(facts.memory.available_bytes, returned, facts.memory.total_bytes, _promised(others))
    return MemoryPool(kind=RAM, free_bytes=free, total_bytes=facts.memory.total_bytes)


def _returned(replaced: ServiceStatus, *, on_device: bool) -> int:
    """What its end gives back, and that of a successor on its way: the new one takes its place, or is that very one.

    Where a server is shared, the model is held by processes that are not the service's.
    """
    if replaced.spec.shared_port_path:
        return replaced.spec.promised_memory_bytes if replaced.state is ServiceState.READY else 0
    holders: list[ServiceStatus | Successor] = [replaced]
    if replaced.successor is not None:
        holders.append(replaced.successor)
    held = [one.gpu_memory_bytes if on_device else one.resident_bytes for one in holders]
    return sum(amount or 0 for amount in held)


def _vram(
    facts: HostFacts, gpus: tuple[GpuFacts, ...], others: tuple[ServiceStatus, ...], replaced: ServiceStatus | None
) -> MemoryPool:
    indices = {gpu.index for gpu in gpus}
    neighbours = tuple(status for status in others if indices & set(status.spec.gpu_indices))
    total = _sum(gpu.memory_total_bytes for gpu in gpus)
    returned = _returned(replaced, on_device=True) if replaced else 0
    free = _both_ledgers(_sum(gpu.memory_free_bytes for gpu in gpus), returned, total, _promised(neighbours))
    spill = facts.memory.available_bytes or 0
    known = [(gpu.memory_free_bytes, gpu.memory_total_bytes) for gpu in gpus]
    sizes = tuple((free, total) for free, total in known if free is not None and total is not None)
    return MemoryPool(
        kind=VRAM,
        free_bytes=free,
        total_bytes=total,
        spill_bytes=spill,
        devices=len(gpus),
        # What a replaced service gives back is not known device by device: then the sum has to do.
        by_device=sizes if len(sizes) == len(gpus) and not returned else (),
    )


def _unified(facts: HostFacts, others: tuple[ServiceStatus, ...], replaced: ServiceStatus | None) -> MemoryPool:
    """Metal may use its working set, and no more than what macOS has available; the rest is the CPU's."""
    working_set = facts.apple.metal_working_set_bytes if facts.apple else None
    returned = _returned(replaced, on_device=False) if replaced else 0
    promised_left = None if working_set is None else max(working_set - _promised(others), 0)
    available = None if facts.memory.available_bytes is None else facts.memory.available_bytes + returned
    known = [value for value in (promised_left, available) if value is not None]
    free = min(known) if known else None
    spill = max((available or 0) - (free or 0), 0)
    return MemoryPool(kind=UNIFIED, free_bytes=free, total_bytes=working_set, spill_bytes=spill)


def _both_ledgers(live_free: int | None, returned: int, total: int | None, promised: int) -> int | None:
    if live_free is None:
        return None
    free = live_free + returned
    return free if total is None else max(min(free, total - promised), 0)


def _promised(services: tuple[ServiceStatus, ...]) -> int:
    return sum(status.spec.promised_memory_bytes for status in services)


def _sum(values: Iterable[int | None]) -> int | None:
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)
