"""All that could serve a model on a host, with what each needs, and who decides among it. Pure."""

from collections.abc import Callable

from fleet_controller.backends import BACKENDS
from fleet_controller.backends.base import BackendError, installed
from fleet_controller.domain.base import Frozen
from fleet_controller.domain.facts import GpuFacts, HostFacts
from fleet_controller.domain.plan import DeployRequest, FitVerdict
from fleet_controller.domain.resolved import ResolvedModel
from fleet_controller.domain.services import ServiceStatus
from fleet_controller.planning.candidates import Choice, every_candidate
from fleet_controller.planning.devices import memory_pool, visible_gpus
from fleet_controller.planning.engine import choose_installation, computing_gpus
from fleet_controller.planning.problem import PlanProblem
from fleet_controller.planning.usable import backend_as_asked, backend_named, on_request_only
from fleet_inventory.hosts import Host


class Candidate(Frozen):
    """One way to serve a model on a host. `place` is that in fleet's own order, from 1.

    `version` is what would run, `installed` whether it is there; `excluded` says why it cannot be had here at all.
    `on_request` says why a deploy takes it only where its user names the backend, "" = it takes it by itself.
    """

    choice: Choice
    place: int
    version: str = ""
    gpu_indices: tuple[int, ...] = ()
    installed: bool = False
    excluded: str = ""
    on_request: str = ""


class Considered(Frozen):
    """The candidates of a host, and why the other backends are of no use there, by their names."""

    candidates: tuple[Candidate, ...] = ()
    unusable: tuple[tuple[str, str], ...] = ()


# Takes one of several candidates by what is known of them; None where it has nothing to say.
Decider = Callable[[Host, HostFacts, ResolvedModel, tuple[Candidate, ...]], Choice | None]


def gpus_by_backend(
    host: Host, facts: HostFacts, request: DeployRequest, resolved: ResolvedModel
) -> dict[str, tuple[GpuFacts, ...]]:
    """The GPUs that each backend would compute on. Raises PlanProblem for a backend that does not exist."""
    visible = visible_gpus(facts, host.environment)
    asked = backend_named(request.backend).name if request.backend else ""
    return {
        name: computing_gpus(
            backend_as_asked(name, request, resolved),
            facts,
            visible,
            resolved,
            request.tensor_parallel if name == asked else None,
        )
        for name in BACKENDS
    }


def consider(
    host: Host,
    facts: HostFacts,
    services: tuple[ServiceStatus, ...],
    request: DeployRequest,
    resolved: ResolvedModel,
    running: ServiceStatus | None = None,
) -> Considered:
    """Every candidate of a host; what `running` holds counts as free. Raises PlanProblem for what was asked wrongly."""
    used = gpus_by_backend(host, facts, request, resolved)
    pools = {name: memory_pool(facts, gpus, services, running) for name, gpus in used.items()}
    choices, unusable = every_candidate(facts, request, resolved, pools, host.limits.memory_reserve_bytes)
    found = tuple(
        _candidate(facts, request, resolved, running, choice, place, used[choice.backend])
        for place, choice in enumerate(choices, start=1)
    )
    return Considered(candidates=found, unusable=tuple(sorted(unusable.items())))


def _candidate(
    facts: HostFacts,
    request: DeployRequest,
    resolved: ResolvedModel,
    running: ServiceStatus | None,
    choice: Choice,
    place: int,
    gpus: tuple[GpuFacts, ...],
) -> Candidate:
    backend = backend_as_asked(choice.backend, request, resolved)
    base = Candidate(choice=choice, place=place, gpu_indices=tuple(gpu.index for gpu in gpus))
    version, is_there, excluded, missing = "", False, "", ""
    try:
        installation = choose_installation(facts, backend, gpus, request, resolved, running)
        there = installed(facts, installation.install_key)
        # Binaries that were adopted have a version of their own, which results name.
        version, is_there = (there.version if there else None) or installation.version, not installation.steps
    except BackendError as error:
        missing = error.message
        excluded = "" if error.refused else f"cannot be installed here: {error.message}"
    is_named = bool(request.backend)
    on_request = ""
    if on_request_only(choice.backend, facts) and not is_there and not is_named:
        on_request = missing or f"{choice.backend} is not installed here"
    update = {"version": version, "installed": is_there, "excluded": excluded, "on_request": on_request}
    return base.model_copy(update=update)


def decided(
    host: Host,
    facts: HostFacts,
    services: tuple[ServiceStatus, ...],
    request: DeployRequest,
    resolved: ResolvedModel,
    running: ServiceStatus | None,
    decider: Decider,
) -> Choice | None:
    """What the decider takes of the candidates that a deploy takes by itself; None where there is nothing to decide."""
    if request.backend and request.quantization:
        return None
    try:
        considered = consider(host, facts, services, request, resolved, running)
    except PlanProblem:
        return None  # the plan finds it as well, and says it
    own = tuple(one for one in considered.candidates if not one.on_request and not one.excluded)
    fitting = [one for one in own if one.choice.fit.verdict is not FitVerdict.REFUSED]
    return decider(host, facts, resolved, own) if len(fitting) > 1 else None
