"""A sum in two places: what lies on the devices, and what lies in the host's memory beside them."""

from fleet_controller.domain.base import Frozen
from fleet_controller.domain.plan import FitLine

WEIGHTS, RESERVE = "weights", "reserve"
KV_CACHE, WINDOW_CACHE, RECURRENT_STATE = "KV cache", "window cache", "recurrent state"
COMPUTE, CONTEXT, PROCESS = "compute buffers", "CUDA context", "process"
DRAFT, CHECKPOINTS = "draft head", "state checkpoints"
CORRECTION = "correction"
TAKEN_BEFOREHAND = "taken beforehand"
CACHES = (KV_CACHE, WINDOW_CACHE, RECURRENT_STATE)


class Sum(Frozen):
    """`device` lines are held against the pool that a model must fit into; `host` lines lie in RAM beside a GPU."""

    device: tuple[FitLine, ...] = ()
    host: tuple[FitLine, ...] = ()

    @property
    def device_bytes(self) -> int:
        return sum(line.bytes for line in self.device)

    @property
    def host_bytes(self) -> int:
        return sum(line.bytes for line in self.host)


def mebibytes(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
