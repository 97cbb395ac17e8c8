"""The service that a plan would run: its spec, its port, and whether it is what runs already."""

from collections.abc import Iterable, Mapping

from fleet_controller.backends import Backend
from fleet_controller.backends.base import Installation, ServeOptions, SharesServer, projector_path
from fleet_controller.domain.base import EnvironmentVariable
from fleet_controller.domain.facts import GpuFacts, HostFacts
from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.resolved import ResolvedModel
from fleet_controller.domain.services import DesiredState, ServiceSpec, ServiceStatus
from fleet_controller.planning.candidates import Choice
from fleet_controller.planning.problem import PlanProblem
from fleet_controller.planning.secrets import api_key_of
from fleet_controller.planning.usable import backend_as_asked, engine_options
from fleet_controller.planning.wishes import kept_options, options_json
from fleet_inventory.hosts import Host

LOOPBACK = "127.0.0.1"
LAST_PORT = 65535
# Variables of hosts.yaml that concern fetching and building only: a server neither needs them nor restarts for them.
FETCHING_KEYS = frozenset(
    {"HF_ENDPOINT", "HF_TOKEN_PATH", "HF_HUB_DISABLE_XET", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}
    | {"http_proxy", "https_proxy", "no_proxy"}
)
FETCHING_PREFIXES = ("UV_",)
NAMED_FIELDS = (
    "backend", "backend_version", "model", "quantization", "context_length", "max_parallel", "port", "bind_address"
)  # fmt: skip


def service_spec(
    host: Host,
    facts: HostFacts,
    gpus: tuple[GpuFacts, ...],
    request: DeployRequest,
    resolved: ResolvedModel,
    choice: Choice,
    installation: Installation,
    port: int,
) -> tuple[ServiceSpec, tuple[tuple[str, ...], ...]]:
    """The service, and the words of its command line that the installed build does not know and that were left out."""
    backend = backend_as_asked(choice.backend, request, resolved)
    bind_address = request.bind_address or LOOPBACK
    api_key = api_key_of(backend, request)
    try:
        model_path = backend.model_path(choice.artifact, facts.layout.hf_home)
    except ValueError as error:
        raise PlanProblem("no-model-file", str(error), "choose another quantization with --quant") from error
    command = backend.serve(
        installation,
        ServeOptions(
            model_name=resolved.name,
            model_path=model_path,
            context_tokens=choice.context_tokens,
            max_parallel=request.max_parallel or 0,
            host=bind_address,
            port=port,
            sampling=resolved.sampling,
            overrides=resolved.overrides_for(backend.name),
            weights_bytes=choice.artifact.weights_bytes or 0,
            devices=len(gpus),
            hf_home=facts.layout.hf_home,
            engine=engine_options(request),
            projector_path=projector_path(choice.artifact, facts.layout.hf_home),
            cache_bytes=choice.fit.cache_bytes,
        ),
    )
    spec = ServiceSpec(
        name=resolved.name,
        backend=backend.name,
        backend_version=installation.version,
        model=choice.artifact.repository or choice.artifact.local_path,
        quantization=choice.artifact.quantization,
        context_length=choice.context_tokens,
        max_parallel=request.max_parallel or 0,
        tool=command.tool,
        arguments=command.arguments,
        environment=_merged(_device_order(facts), _serving_environment(host.environment), command.environment),
        bind_address=bind_address,
        port=port,
        readiness=command.readiness,
        promised_memory_bytes=choice.fit.promised_bytes,
        served_model_name=command.served_model_name,
        gpu_indices=tuple(gpu.index for gpu in gpus),
        before_start=command.before_start,
        after_stop=command.after_stop,
        shared_port_path=command.shared_port_path,
        api_key=api_key,
        metrics=command.metrics,
        backend_options=options_json(request),
    )
    return spec, command.left_out


def choose_port(
    host: Host,
    request: DeployRequest,
    services: tuple[ServiceStatus, ...],
    running: ServiceStatus | None,
    backend: Backend,
) -> int:
    """The port asked for, else the one it has, else the backend's default or the next that no service of ours has."""
    taken = {status.spec.port: status.spec.name for status in services if status is not running}
    limits = host.limits.ports
    shared = _sharing(services, running, backend)
    if shared is not None:
        return _shared_port(shared, request, backend)
    if request.port:
        if request.port in taken:
            message = f"port {request.port} belongs to {taken[request.port]} on this host"
            raise PlanProblem("port-taken", message, "choose another with --port, or leave it out", refused=True)
        if limits and not limits.first <= request.port <= limits.last:
            message = f"port {request.port} is outside limits.ports ({limits.first}-{limits.last}) of this host"
            raise PlanProblem("port-not-allowed", message, "choose another with --port, or leave it out", refused=True)
        return request.port
    first, last = (limits.first, limits.last) if limits else (backend.default_port, LAST_PORT)
    # A server that is shared keeps its port when one of its models is served by another backend from now on.
    stays = running is not None and bool(running.spec.shared_port_path) == isinstance(backend, SharesServer)
    if running is not None and stays and first <= running.spec.port <= last and running.spec.port not in taken:
        return running.spec.port
    free = next((port for port in range(first, last + 1) if port not in taken), None)
    if free is None:
        message = f"every port of limits.ports ({first}-{last}) is taken"
        raise PlanProblem("port-taken", message, "stop a service, or widen limits.ports", refused=True)
    return free


def _sharing(
    services: tuple[ServiceStatus, ...], running: ServiceStatus | None, backend: Backend
) -> ServiceSpec | None:
    """Another service on the one server that this backend has on a host."""
    if not isinstance(backend, SharesServer):
        return None
    others = (status for status in services if status is not running and status.desired is DesiredState.RUNNING)
    return next((status.spec for status in others if status.spec.backend == backend.name), None)


def _shared_port(shared: ServiceSpec, request: DeployRequest, backend: Backend) -> int:
    if request.port in (None, shared.port):
        return shared.port
    message = f"{backend.name} has one server on this host, and {shared.name} is served by it on {shared.port}"
    raise PlanProblem("port-taken", message, f"give --port {shared.port}, or leave it out", refused=True)


def _device_order(facts: HostFacts) -> tuple[EnvironmentVariable, ...]:
    """CUDA counts the fastest card first, NVML and nvidia-smi by bus: on a mixed host one index means two cards."""
    mixed = len({gpu.name for gpu in facts.gpus}) > 1
    return (EnvironmentVariable(name="CUDA_DEVICE_ORDER", value="PCI_BUS_ID"),) if mixed else ()


def _serving_environment(environment: Mapping[str, str]) -> tuple[EnvironmentVariable, ...]:
    return tuple(
        EnvironmentVariable(name=name, value=value)
        for name, value in sorted(environment.items())
        if name not in FETCHING_KEYS and not name.startswith(FETCHING_PREFIXES)
    )


def _merged(*groups: Iterable[EnvironmentVariable]) -> tuple[EnvironmentVariable, ...]:
    """Later groups win; sorted by name, so that the same settings are the same spec."""
    values = {variable.name: variable.value for group in groups for variable in group}
    return tuple(EnvironmentVariable(name=name, value=value) for name, value in sorted(values.items()))


def same_service(first: ServiceSpec, second: ServiceSpec) -> bool:
    """Whether two specs mean the same process. What we promised, how long we would wait, where its figures are read and
    how it was asked for do not restart a model.
    """
    own = ("promised_memory_bytes", "readiness", "metrics", "backend_options")
    return first.model_dump(exclude=set(own)) == second.model_dump(exclude=set(own))


def same_but_learnt(shown: ServiceSpec, fresh: ServiceSpec, left_out: Iterable[tuple[str, ...]]) -> bool:
    """Whether `fresh` is `shown` but for what the finished install told: its version, and options it does not know."""
    arguments = shown.arguments
    for words in left_out:
        at = next((i for i in range(len(arguments)) if arguments[i : i + len(words)] == words), None)
        if at is not None:
            arguments = arguments[:at] + arguments[at + len(words) :]
    learnt = shown.model_copy(update={"arguments": arguments, "backend_version": fresh.backend_version})
    return same_service(learnt, fresh)


def changes(old: ServiceSpec, new: ServiceSpec) -> str:
    """What differs, for people: "context_length 8192 -> 16384, port 8080 -> 8081, kv_cache_type default -> q8_0"."""
    differing = [key for key in NAMED_FIELDS if getattr(old, key) != getattr(new, key)]
    found = [f"{key} {getattr(old, key)} -> {getattr(new, key)}" for key in differing]
    before, after = kept_options(old.backend_options), kept_options(new.backend_options)
    asked = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
    found += [f"{key} {_word(before.get(key))} -> {_word(after.get(key))}" for key in asked]
    if old.api_key != new.api_key:
        found.append("API key " + ("added" if old.api_key is None else "removed" if new.api_key is None else "changed"))
    return ", ".join(found) or _other_changes(old, new)


def _other_changes(old: ServiceSpec, new: ServiceSpec) -> str:
    """Where what was asked for is the same: a newer fleet gives other arguments, or the host's settings changed."""
    words = [f"+ {word}" for word in new.arguments if word not in old.arguments]
    words += [f"- {word}" for word in old.arguments if word not in new.arguments]
    if words:
        return f"command line: {' '.join(words)}"
    names = sorted({variable.name for variable in {*old.environment} ^ {*new.environment}})
    return f"environment: {', '.join(names)}" if names else "its command line or environment changed"


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "default" if value is None else str(value)
