"""Model servers: what should run, and what does. They mirror services.proto."""

from enum import StrEnum

from fleet_controller.domain.base import EnvironmentVariable, Frozen, Problem
from fleet_controller.domain.steps import ToolRef


class ServiceState(StrEnum):
    UNSPECIFIED = "SERVICE_STATE_UNSPECIFIED"
    STARTING = "SERVICE_STATE_STARTING"
    READY = "SERVICE_STATE_READY"
    UNHEALTHY = "SERVICE_STATE_UNHEALTHY"
    BACKING_OFF = "SERVICE_STATE_BACKING_OFF"
    STOPPED = "SERVICE_STATE_STOPPED"
    FAILED = "SERVICE_STATE_FAILED"


class DesiredState(StrEnum):
    UNSPECIFIED = "DESIRED_STATE_UNSPECIFIED"
    RUNNING = "DESIRED_STATE_RUNNING"
    STOPPED = "DESIRED_STATE_STOPPED"


class ReadinessProbe(Frozen):
    path: str = "/health"
    start_limit_seconds: float = 300.0
    interval_seconds: float = 10.0


class ServiceSpec(Frozen):
    name: str
    backend: str
    backend_version: str = ""
    model: str = ""
    quantization: str = ""
    context_length: int = 0
    max_parallel: int = 0
    tool: ToolRef
    arguments: tuple[str, ...] = ()
    environment: tuple[EnvironmentVariable, ...] = ()
    bind_address: str = "127.0.0.1"
    port: int = 0
    readiness: ReadinessProbe = ReadinessProbe()
    promised_memory_bytes: int = 0
    served_model_name: str = ""
    gpu_indices: tuple[int, ...] = ()


class ProcessIdentity(Frozen):
    pid: int
    start_token: str


class ServiceStatus(Frozen):
    spec: ServiceSpec
    state: ServiceState = ServiceState.UNSPECIFIED
    desired: DesiredState = DesiredState.UNSPECIFIED
    process: ProcessIdentity | None = None
    started_unix_ms: int | None = None
    ready_unix_ms: int | None = None
    restarts: int = 0
    problem: Problem | None = None
    resident_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    next_start_unix_ms: int | None = None
    spec_digest: str = ""
    last_exit_code: int | None = None
    argv: tuple[str, ...] = ()
