"""Facts about one host. None means unknown; sizes are bytes, clocks MHz, power watts."""

from enum import StrEnum

from pydantic import Field

from fleet_controller.domain.base import Frozen
from fleet_controller.domain.memory import MemoryObservation


class ProbeOutcome(StrEnum):
    UNSPECIFIED = "PROBE_OUTCOME_UNSPECIFIED"
    OK = "PROBE_OUTCOME_OK"
    NO_DATA = "PROBE_OUTCOME_NO_DATA"
    FAILED = "PROBE_OUTCOME_FAILED"
    TIMED_OUT = "PROBE_OUTCOME_TIMED_OUT"


class SystemFacts(Frozen):
    os: str = ""
    architecture: str = ""
    os_name: str = ""
    kernel: str = ""
    macos_build: str | None = None
    libc: str | None = None
    uptime_seconds: float | None = None
    user: str = ""
    python_version: str = ""
    home_is_network: bool | None = None


class CpuFacts(Frozen):
    model: str = ""
    physical_cores: int | None = None
    logical_cores: int | None = None
    load_average_1m: float | None = None
    features: tuple[str, ...] = ()


class MemoryFacts(Frozen):
    total_bytes: int | None = None
    available_bytes: int | None = None
    swap_total_bytes: int | None = None
    swap_free_bytes: int | None = None


class DiskFacts(Frozen):
    purpose: str = ""
    path: str = ""
    total_bytes: int | None = None
    free_bytes: int | None = None
    filesystem: str | None = None
    writable: bool | None = None


class NvidiaDriverFacts(Frozen):
    driver_version: str | None = None
    cuda_version: str | None = None


class GpuProcess(Frozen):
    pid: int
    memory_bytes: int | None = None
    user: str | None = None
    command: str | None = None
    started_unix_ms: int | None = None
    ours: bool = False
    compute: bool | None = None


class GpuFacts(Frozen):
    index: int = 0
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


class AppleFacts(Frozen):
    chip: str | None = None
    gpu_cores: int | None = None
    unified_memory_bytes: int | None = None
    metal_working_set_bytes: int | None = None
    performance_cores: int | None = None
    efficiency_cores: int | None = None


class EngineFacts(Frozen):
    backend: str
    version: str | None = None
    path: str = ""
    managed: bool = False
    install_key: str = ""
    size_bytes: int | None = None
    created_unix_ms: int | None = None
    served_unix_ms: int | None = None
    flags: tuple[str, ...] = ()


class ToolFacts(Frozen):
    name: str
    path: str = ""
    version: str | None = None


class HostLayout(Frozen):
    """Absolute folders on the host, so that a plan can show exact paths before anything runs."""

    state_dir: str
    engines_dir: str
    hf_home: str
    model_dir: str = ""
    runtime_dir: str = ""


class ProbeReport(Frozen):
    name: str
    seconds: float = 0.0
    outcome: ProbeOutcome = ProbeOutcome.UNSPECIFIED
    detail: str = ""


class DeviceLease(Frozen):
    """A bench that has devices for itself; no index = the whole host."""

    gpu_indices: tuple[int, ...] = ()
    owner: str = ""
    title: str = ""
    since_unix_ms: int = 0
    paused_services: tuple[str, ...] = ()


class HostFacts(Frozen):
    """`observed_memory` is not the host's word: what the controller saw servers take, here and on hosts like this.

    It stays out of messages and of what is kept.
    """

    machine_id: str = ""
    hostname: str = ""
    system: SystemFacts = SystemFacts()
    cpu: CpuFacts = CpuFacts()
    memory: MemoryFacts = MemoryFacts()
    disks: tuple[DiskFacts, ...] = ()
    gpus: tuple[GpuFacts, ...] = ()
    nvidia: NvidiaDriverFacts | None = None
    apple: AppleFacts | None = None
    engines: tuple[EngineFacts, ...] = ()
    layout: HostLayout
    probes: tuple[ProbeReport, ...] = ()
    taken_unix_ms: int = 0
    tools: tuple[ToolFacts, ...] = ()
    leases: tuple[DeviceLease, ...] = ()
    observed_memory: tuple[MemoryObservation, ...] = Field(default=(), exclude=True)
