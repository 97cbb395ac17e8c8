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


class ConfigurationFile(Frozen):
    option: str
    key: str


class ApiKey(Frozen):
    """The key that a server asks for, by reference; exactly one way in which the server takes it."""

    secret: str
    file_option: str | None = None
    environment: str | None = None
    configuration: ConfigurationFile | None = None


class MetricsProbe(Frozen):
    path: str
    counters: tuple[str, ...] = ()
    gauges: tuple[str, ...] = ()


class ToolRun(Frozen):
    tool: ToolRef
    arguments: tuple[str, ...] = ()
    limit_seconds: float = 0.0


class ServiceSpec(Frozen):
    """Of a service whose record was damaged an agent knows the name alone."""

    name: str
    backend: str = ""
    backend_version: str = ""
    model: str = ""
    quantization: str = ""
    context_length: int = 0
    max_parallel: int = 0
    tool: ToolRef = ToolRef()
    arguments: tuple[str, ...] = ()
    environment: tuple[EnvironmentVariable, ...] = ()
    bind_address: str = "127.0.0.1"
    port: int = 0
    readiness: ReadinessProbe = ReadinessProbe()
    promised_memory_bytes: int = 0
    served_model_name: str = ""
    gpu_indices: tuple[int, ...] = ()
    api_key: ApiKey | None = None
    metrics: MetricsProbe | None = None
    before_start: tuple[ToolRun, ...] = ()
    after_stop: tuple[ToolRun, ...] = ()
    shared_port_path: str = ""
    backend_options: str = ""


class ProcessIdentity(Frozen):
    pid: int
    start_token: str


class Successor(Frozen):
    """A server beside the service's own that takes its place once it is READY; FAILED: it was given up."""

    spec: ServiceSpec
    spec_digest: str = ""
    state: ServiceState = ServiceState.UNSPECIFIED
    port: int = 0
    process: ProcessIdentity | None = None
    problem: Problem | None = None
    resident_bytes: int | None = None
    gpu_memory_bytes: int | None = None


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
    tokens_per_second: float | None = None
    successor: Successor | None = None
    ended_first_because: str = ""


class ForeignServer(Frozen):
    """A model server that fleet did not start: listed and benched, never stopped."""

    port: int
    backend: str = ""
    version: str = ""
    models: tuple[str, ...] = ()
    pid: int | None = None
    user: str = ""
    command: str = ""
    needs_key: bool = False
    address: str = ""
