"""What probes return, and the contract of a probe. Field names are the wire's; None means unknown, never zero."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from fleet_agent.configuration import AgentConfiguration
from fleet_agent.layout import Layout


class NoData(Exception):
    """There is nothing of that kind on this host: no failure."""


class Outcome(Enum):
    OK = "ok"
    NO_DATA = "no data"
    FAILED = "failed"
    TIMED_OUT = "timed out"


def _no_pids() -> Iterable[int]:
    return ()


@dataclass(frozen=True)
class ProbeContext:
    """own_pids tells the processes of our services and jobs, so that a probe can tell ours from foreign ones."""

    layout: Layout
    configuration: AgentConfiguration
    own_pids: Callable[[], Iterable[int]] = _no_pids


@dataclass(frozen=True)
class Probe:
    """read() runs in a thread of its own: it may block, must not touch the event loop, raises NoData where there is
    nothing to tell, and anything else where it failed."""

    name: str
    read: Callable[[ProbeContext], Any]
    limit_seconds: float = 4.0


@dataclass(frozen=True)
class ProbeResult:
    name: str
    seconds: float
    outcome: Outcome
    detail: str = ""
    facts: Any = None


@dataclass(frozen=True)
class SystemFacts:
    os: str
    architecture: str
    os_name: str
    kernel: str
    user: str
    python_version: str
    macos_build: str | None = None
    libc: str | None = None
    uptime_seconds: float | None = None
    home_is_network: bool | None = None


@dataclass(frozen=True)
class CpuFacts:
    model: str
    physical_cores: int | None = None
    logical_cores: int | None = None
    load_average_1m: float | None = None
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class MemoryFacts:
    total_bytes: int | None = None
    available_bytes: int | None = None
    swap_total_bytes: int | None = None
    swap_free_bytes: int | None = None


@dataclass(frozen=True)
class DiskFacts:
    purpose: str
    path: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    filesystem: str | None = None
    writable: bool | None = None


@dataclass(frozen=True)
class NvidiaDriverFacts:
    driver_version: str | None = None
    cuda_version: str | None = None


@dataclass(frozen=True)
class GpuProcess:
    """compute: it holds a compute context; a process that only draws (a desktop) does not occupy the device."""

    pid: int
    memory_bytes: int | None = None
    user: str | None = None
    command: str | None = None
    started_unix_ms: int | None = None
    ours: bool = False
    compute: bool = True


@dataclass(frozen=True)
class GpuFacts:
    index: int
    uuid: str = ""
    name: str = ""
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    memory_used_bytes: int | None = None
    compute_capability_major: int | None = None
    compute_capability_minor: int | None = None
    power_limit_watts: float | None = None
    power_draw_watts: float | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_celsius: int | None = None
    utilization_percent: int | None = None
    throttle_reasons: tuple[str, ...] = ()
    throttle_reasons_known: bool = False
    persistence_mode: bool | None = None
    mig_enabled: bool | None = None
    processes: tuple[GpuProcess, ...] = ()
    processes_known: bool = False


@dataclass(frozen=True)
class NvidiaFacts:
    driver: NvidiaDriverFacts
    gpus: tuple[GpuFacts, ...] = field(default=())


@dataclass(frozen=True)
class AppleFacts:
    chip: str | None = None
    gpu_cores: int | None = None
    unified_memory_bytes: int | None = None
    metal_working_set_bytes: int | None = None
    performance_cores: int | None = None
    efficiency_cores: int | None = None


@dataclass(frozen=True)
class EngineFacts:
    backend: str
    path: str
    version: str | None = None
    managed: bool = False
    install_key: str = ""
    size_bytes: int | None = None
    created_unix_ms: int | None = None
    served_unix_ms: int | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class ToolFacts:
    name: str
    path: str
    version: str | None = None
