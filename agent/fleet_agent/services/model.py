"""What a service is, frozen. These mirror services.proto; the wire types stay in server/services.py."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from fleet_agent.problem import ProblemError
from fleet_agent.process import ProcessIdentity

DEFAULT_START_LIMIT_SECONDS = 300.0
DEFAULT_INTERVAL_SECONDS = 10.0

LATER_FIELDS = ("api_key", "metrics", "before_start", "after_stop", "shared_port_path", "backend_options")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")


class ServiceState(str, Enum):
    """The closed set of states; transitions.py holds the ways between them."""

    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    BACKING_OFF = "backing-off"
    STOPPED = "stopped"
    FAILED = "failed"


class DesiredState(str, Enum):
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Problem:
    """One thing that went wrong, in the words a user sees; tail: the last lines of what the server printed."""

    code: str
    message: str
    remedy: str = ""
    tail: tuple[str, ...] = ()


@dataclass(frozen=True)
class ToolReference:
    """A program by name: inside an install of ours, or, without a key, from the host's allowlist."""

    name: str
    install_key: str = ""


@dataclass(frozen=True)
class ReadinessProbe:
    """GET of `path` on the service's port; 2xx = ready.

    start_limit_seconds: without a sign of progress for that long, a start has failed. interval_seconds: once ready.
    """

    path: str = "/health"
    start_limit_seconds: float = DEFAULT_START_LIMIT_SECONDS
    interval_seconds: float = DEFAULT_INTERVAL_SECONDS


@dataclass(frozen=True)
class ConfigurationFile:
    """A YAML file of mode 0600 with one line "<key>: <secret>", its path given with `option`."""

    option: str
    key: str


@dataclass(frozen=True)
class ApiKey:
    """The key that the server asks of its clients, by the name of a secret; exactly one way in which it is taken."""

    secret: str
    file_option: str = ""
    environment: str = ""
    configuration: ConfigurationFile | None = None


@dataclass(frozen=True)
class MetricsProbe:
    """Where the server tells its rate: of several names, the first that it knows counts."""

    path: str
    counters: tuple[str, ...] = ()
    gauges: tuple[str, ...] = ()


@dataclass(frozen=True)
class ToolRun:
    """A tool of the host that is run to its end. limit_seconds 0 = 60 s."""

    tool: ToolReference
    arguments: tuple[str, ...] = ()
    limit_seconds: float = 0.0


@dataclass(frozen=True)
class ServiceSpec:
    """A model server as the plan wants it. 0 and "" are "not said", as on the wire."""

    name: str
    tool: ToolReference
    backend: str = ""
    backend_version: str = ""
    model: str = ""
    quantization: str = ""
    context_length: int = 0
    max_parallel: int = 0
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
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

    def digest(self) -> str:
        """sha256 (hex) over the canonical JSON of what is said: the same digest, the same server."""
        document = asdict(self)
        for name in LATER_FIELDS:  # a spec of before they existed keeps its digest, and its server runs on
            if not document[name]:
                del document[name]
        document["environment"] = dict(self.environment)
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class SuccessorStatus:
    """A server beside the service's own, which is to take its place. FAILED: it was given up."""

    spec: ServiceSpec
    state: ServiceState
    port: int
    process: ProcessIdentity | None = None
    problem: Problem | None = None
    resident_bytes: int | None = None
    gpu_memory_bytes: int | None = None


@dataclass(frozen=True)
class ServiceStatus:
    """A service as it is now. Times are Unix milliseconds; None is "unknown" or "not so now"."""

    spec: ServiceSpec
    state: ServiceState
    desired: DesiredState
    spec_digest: str
    process: ProcessIdentity | None = None
    started_unix_ms: int | None = None
    ready_unix_ms: int | None = None
    restarts: int = 0
    problem: Problem | None = None
    resident_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    next_start_unix_ms: int | None = None
    last_exit_code: int | None = None
    argv: tuple[str, ...] = ()
    tokens_per_second: float | None = None
    successor: SuccessorStatus | None = None
    ended_first_because: str = ""


class InvalidServiceError(ProblemError):
    """A spec that breaks a rule."""

    def __init__(self, message: str) -> None:
        super().__init__("invalid-service", message, "correct the request", "INVALID_ARGUMENT")


class UnknownServiceError(ProblemError):
    """There is no such service on this host."""

    def __init__(self, name: str) -> None:
        super().__init__(
            "unknown-service",
            f"no service {name!r} on this host",
            "`fleet ps` lists the services there are",
            "NOT_FOUND",
        )


def check_spec(spec: ServiceSpec) -> None:
    """Raises InvalidServiceError for the first rule that the spec breaks."""
    if not _NAME.match(spec.name):
        raise InvalidServiceError(
            f"service name {spec.name!r}: lower-case letters, digits, '.', '_' and '-', at most 64 characters"
        )
    if not spec.tool.name:
        raise InvalidServiceError(f"service {spec.name}: no tool to run")
    if not 1 <= spec.port <= 65535:
        raise InvalidServiceError(f"service {spec.name}: port {spec.port} is not between 1 and 65535")
    if not re.fullmatch(r"/[!-~]*", spec.readiness.path):
        raise InvalidServiceError(f"service {spec.name}: readiness path {spec.readiness.path!r} is not a URL path")
    if not re.fullmatch(r"(/[!-~]*)?", spec.shared_port_path):
        raise InvalidServiceError(f"service {spec.name}: shared port path {spec.shared_port_path!r} is not a URL path")
    runs = (*spec.before_start, *spec.after_stop)
    if any(not run.tool.name or run.limit_seconds < 0 for run in runs):
        raise InvalidServiceError(f"service {spec.name}: a command without a tool, or with a negative limit")
    if any("\0" in argument for run in runs for argument in run.arguments):
        raise InvalidServiceError(f"service {spec.name}: an argument holds a NUL")
    if any("\0" in argument for argument in spec.arguments):
        raise InvalidServiceError(f"service {spec.name}: an argument holds a NUL")


def spec_from_document(document: Mapping[str, Any]) -> ServiceSpec:
    """The spec of a JSON document as asdict() wrote it. Raises KeyError, TypeError or ValueError for another one."""
    values = dict(document)
    values["tool"] = ToolReference(**values["tool"])
    values["readiness"] = ReadinessProbe(**values["readiness"])
    values["environment"] = tuple((str(name), str(value)) for name, value in values["environment"])
    values["arguments"] = tuple(str(argument) for argument in values["arguments"])
    values["gpu_indices"] = tuple(int(index) for index in values["gpu_indices"])
    if values.get("api_key"):
        values["api_key"] = _api_key_from_document(values["api_key"])
    if values.get("metrics"):
        metrics = values["metrics"]
        values["metrics"] = MetricsProbe(metrics["path"], tuple(metrics["counters"]), tuple(metrics["gauges"]))
    for name in ("before_start", "after_stop"):
        values[name] = tuple(
            ToolRun(ToolReference(**run["tool"]), tuple(run["arguments"]), run["limit_seconds"])
            for run in values.get(name, ())
        )
    return ServiceSpec(**values)


def _api_key_from_document(document: Mapping[str, Any]) -> ApiKey:
    configuration = document["configuration"]
    return ApiKey(**{**document, "configuration": ConfigurationFile(**configuration) if configuration else None})
