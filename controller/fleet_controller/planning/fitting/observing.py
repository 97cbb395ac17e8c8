"""From a plan's sum and a server that answers to an observation: what was predicted for it, and what it holds. Pure."""

from collections.abc import Iterable

from fleet_controller.backends.llama_cpp_memory import needed_bytes, parse_buffers
from fleet_controller.domain.memory import MemoryObservation
from fleet_controller.domain.plan import FitLine
from fleet_controller.domain.services import ServiceStatus
from fleet_controller.domain.sizes import gibibytes
from fleet_controller.planning.fitting.lines import CORRECTION, RESERVE, TAKEN_BEFOREHAND


def observation_of(
    lines: Iterable[FitLine], status: ServiceStatus, device: str, log: str = "", host: str = "", now_unix_ms: int = 0
) -> MemoryObservation | None:
    """None where nothing can be learnt: nothing predicted or seen, or a server that takes a fixed part anyway."""
    lines = tuple(lines)
    spec = status.spec
    on_gpu = bool(spec.gpu_indices)
    seen = status.gpu_memory_bytes if on_gpu else status.resident_bytes
    taken_anyway = any(line.what == TAKEN_BEFOREHAND for line in lines)
    predicted = sum(line.bytes for line in lines if line.what not in (RESERVE, CORRECTION))
    if seen is None or not predicted or taken_anyway or spec.shared_port_path:
        return None
    buffers = [buffer for buffer in parse_buffers(log) if buffer.on_device == on_gpu]
    # Resident memory of the host lacks what is reserved and not yet touched, and has pages of the file that the kernel
    # may drop: the log is the better witness where it tells.
    observed = needed_bytes(buffers) if buffers and not on_gpu else seen
    return MemoryObservation(
        backend=spec.backend,
        version=spec.backend_version,
        device=device,
        artifact=f"{spec.model} {spec.quantization}".strip(),
        context_tokens=spec.context_length,
        slots=spec.max_parallel,
        predicted_bytes=predicted,
        observed_bytes=observed,
        at_least=not on_gpu,
        host=host,
        buffers=", ".join(f"{buffer.place} {buffer.kind} {gibibytes(buffer.size_bytes)}" for buffer in buffers),
        observed_unix_ms=now_unix_ms,
    )
