"""Engines of many hosts: what is there, and plans that install, upgrade, remove and collect."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable

from fleet_controller.backends import BACKENDS
from fleet_controller.backends.pins import pinned_version
from fleet_controller.domain.base import Frozen, Problem
from fleet_controller.domain.engines import (
    EnginesAction,
    EnginesRequest,
    EnginesVerdict,
    HostEngine,
    HostEngines,
    InstallUse,
)
from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.facts import EngineFacts
from fleet_controller.domain.services import ServiceSpec
from fleet_controller.fanout import as_they_finish
from fleet_controller.operations.canary import canary_first, check_golden, with_canary
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.installers import with_installer
from fleet_controller.operations.problems import OperationError, problem_of
from fleet_controller.operations.resolving import catalog
from fleet_controller.planning.engine_removal import matching
from fleet_controller.planning.engine_state import EngineState, Move, PlannedEngines, stopped
from fleet_controller.planning.engines import Needs, plan_engines
from fleet_controller.rolling.store import RolloutStore
from fleet_controller.rolling.undo import ways_back
from fleet_inventory.catalog import Catalog
from fleet_inventory.hosts import Host
from fleet_inventory.model_file import Model


class StoredEnginesPlan(Frozen):
    """`plan_id` names the content: the same request on hosts in the same state is the same plan."""

    plan_id: str
    request: EnginesRequest
    hosts: tuple[PlannedEngines, ...]


async def list_engines(context: FleetContext, pattern: str) -> AsyncGenerator[HostEngines]:
    """The engines of each host, in the order of the answers."""

    async def of_host(host: Host) -> HostEngines:
        try:
            async with context.pool.client(host) as agent:
                facts, (installs, leftovers) = await asyncio.gather(agent.facts(("engines",)), agent.survey_engines())
        except Exception as error:
            return HostEngines(host=host.name, problem=problem_of(error))
        uses = {use.install_key: use for use in installs}
        engines = tuple(_engine(engine, uses.get(engine.install_key)) for engine in facts.engines)
        return HostEngines(host=host.name, engines=engines, leftovers=leftovers)

    async for found in as_they_finish(context.select(pattern), of_host):
        yield found


def _engine(facts: EngineFacts, use: InstallUse | None) -> HostEngine:
    pin = pinned_version(BACKENDS.get(facts.backend))
    found = HostEngine(facts=facts, pinned=bool(pin) and facts.version == pin)
    if use is None or not facts.managed:
        return found
    return found.model_copy(update=use.model_dump(exclude={"install_key"}))


async def plan(context: FleetContext, request: EnginesRequest) -> StoredEnginesPlan:
    """The plan of each host of the pattern. Raises OperationError where the request itself cannot be met."""
    _check(request)
    check_golden(request)
    hosts = context.select(request.pattern)
    needs = needs_from(catalog(), request)
    states = await asyncio.gather(*(gather(context, host) for host in hosts))
    _demand_installed(request, states)
    request = await with_installer(request, [state.facts for state in states if isinstance(state, EngineState)])
    planned = tuple(_of_host(host, state, request, needs) for host, state in zip(hosts, states, strict=True))
    if request.golden_bench:
        planned = with_canary(context, hosts, states, planned, request)
    body = "".join(item.model_dump_json() for item in planned)
    plan_id = hashlib.sha256(f"engines {request.model_dump_json()}{body}".encode()).hexdigest()[:12]
    stored = StoredEnginesPlan(plan_id=plan_id, request=request, hosts=planned)
    context.database.save_plan(plan_id, stored.model_dump_json())
    return stored


def _check(request: EnginesRequest) -> None:
    known = ", ".join(BACKENDS)
    if request.backend and request.backend not in BACKENDS:
        raise OperationError("unknown-backend", f"no backend {request.backend!r}", f"there are: {known}", usage=True)
    if request.action in (EnginesAction.INSTALL, EnginesAction.UPGRADE) and not request.backend:
        raise OperationError("usage", "name a backend", f"there are: {known}", usage=True)
    if request.action is EnginesAction.REMOVE and not request.install_key and not (request.backend and request.version):
        message = "say which install goes: --key, or a backend with --version"
        raise OperationError("usage", message, "fleet backends list shows them", usage=True)
    for option, path in (("--offline", request.offline_folder), ("--engine-path", request.engine_path)):
        if path and not path.startswith("/"):
            message = f"{option} takes an absolute folder on the hosts, not {path!r}"
            raise OperationError("usage", message, "folders of this machine are not seen there", usage=True)


def _demand_installed(request: EnginesRequest, states: list[EngineState | Problem]) -> None:
    """A removal of what no host has is a misspelling, where every host answered."""
    if request.action is not EnginesAction.REMOVE:
        return
    answered = [state for state in states if isinstance(state, EngineState)]
    if len(answered) == len(states) and not any(matching(state.facts, request) for state in answered):
        what = request.install_key or f"{request.backend} {request.version}"
        raise OperationError(
            "unknown-engine", f"{what} is installed on none of these hosts", "fleet backends list", usage=True
        )


def load(context: FleetContext, plan_id: str) -> StoredEnginesPlan:
    """A plan that `plan` kept. Raises OperationError where there is none."""
    body = context.database.load_plan(plan_id)
    if body is None:
        raise OperationError("no-such-plan", f"plan {plan_id} is not known here", "repeat the command")
    return StoredEnginesPlan.model_validate_json(body)


async def gather(context: FleetContext, host: Host) -> EngineState | Problem:
    """Facts, services and the engines folder of one host, asked for side by side; or why they could not be had."""
    try:
        async with context.pool.client(host) as agent:
            facts, services, (installs, leftovers) = await asyncio.gather(
                agent.facts(), agent.list_services(), agent.survey_engines()
            )
    except Exception as error:
        return problem_of(error)
    begun = (load_begun(context, facts.machine_id, status.spec.name) for status in services)
    unfinished = tuple(move for move in begun if move is not None)
    return EngineState(
        facts=facts, services=services, installs=installs, leftovers=leftovers, unfinished=unfinished,
        undoes=ways_back(RolloutStore(context.database).all(), host.name),
    )  # fmt: skip


def _of_host(
    host: Host, state: EngineState | Problem, request: EnginesRequest, needs: Callable[[ServiceSpec], Needs]
) -> PlannedEngines:
    if isinstance(state, Problem):
        return stopped(host.name, EnginesVerdict.FAIL, state)
    return plan_engines(host, state, request, needs)


def needs_from(models: Catalog, request: EnginesRequest) -> Callable[[ServiceSpec], Needs]:
    """What the catalog says that a service's model needs of its backend; nothing for a model that it does not have."""

    def of(spec: ServiceSpec) -> Needs:
        model = next((model for model in models.models if _serves(model, spec)), None)
        if model is None:
            return Needs()
        notes = model.notes_for(spec.backend)
        own = f"{spec.backend}=="
        pinned = next((item.removeprefix(own) for item in notes.requirements if item.startswith(own)), "")
        settings = notes.for_version(request.version)
        others = tuple(item for item in settings.requirements if not item.startswith(own))
        return Needs(version=notes.version or pinned, requirements=others)

    return of


def _serves(model: Model, spec: ServiceSpec) -> bool:
    return model.name == spec.name or any(artifact.repository == spec.model for artifact in model.artifacts)


def begin(context: FleetContext, machine_id: str, move: Move) -> None:
    """Remember where a service came from until it is known to answer: the way back must outlive this process."""
    context.database.save_plan(_begun_id(machine_id, move.new.name), move.model_dump_json())


def end(context: FleetContext, machine_id: str, service: str) -> None:
    context.database.save_plan(_begun_id(machine_id, service), "")


def load_begun(context: FleetContext, machine_id: str, service: str) -> Move | None:
    body = context.database.load_plan(_begun_id(machine_id, service))
    return Move.model_validate_json(body) if body else None


def _begun_id(machine_id: str, service: str) -> str:
    return f"move-{machine_id}-{service}"


async def change(context: FleetContext, plan_id: str) -> AsyncGenerator[HostEvent]:
    """Run a plan on its hosts; each ends with one `done` event. Leaving detaches, and the same plan joins again."""
    from fleet_controller.operations.engine_changes import change_host

    stored = load(context, plan_id)
    inventory = context.inventory().hosts
    chosen = [item for item in stored.hosts if item.plan.verdict is EnginesVerdict.CHANGE]

    def run(item: PlannedEngines) -> AsyncGenerator[HostEvent]:
        return change_host(context, inventory.get(item.plan.host), item, stored.request)

    async for event in canary_first(chosen, run):
        yield event
