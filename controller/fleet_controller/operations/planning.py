"""A plan for every host of a deploy: gathers what is true now, changes nothing, and is kept so that it can be run."""

import asyncio
import hashlib
import ipaddress
from dataclasses import dataclass

from fleet_controller.domain.artifacts import Artifact
from fleet_controller.domain.base import Frozen, Problem
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.plan import DeployRequest, HostPlan
from fleet_controller.domain.resolved import ResolvedModel
from fleet_controller.domain.services import ServiceStatus
from fleet_controller.memory_store import load_observations
from fleet_controller.operations.choosing_default import decider_for, with_installed_backends
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.installers import with_installer
from fleet_controller.operations.options import demand_options
from fleet_controller.operations.problems import OperationError, problem_of
from fleet_controller.operations.resolving import named, resolve_for
from fleet_controller.operations.secrets import identify, resolve_api_key
from fleet_controller.operations.threads import in_daemon_thread
from fleet_controller.planning.considering import Decider
from fleet_controller.planning.plan import PlannedDeployment, plan_host, unreachable_plan
from fleet_controller.planning.wishes import filled
from fleet_controller.transport.client import AgentClient
from fleet_inventory.hosts import Host


class PlannedHost(Frozen):
    """One host's part of a plan, with what is needed to make it again from fresh facts."""

    deployment: PlannedDeployment
    resolved: ResolvedModel | None = None

    @property
    def shown(self) -> HostPlan:
        return self.deployment.plan


class StoredPlan(Frozen):
    """`plan_id` names the content: the same request on hosts in the same state is the same plan."""

    plan_id: str
    request: DeployRequest
    hosts: tuple[PlannedHost, ...]


@dataclass(frozen=True)
class HostState:
    """What a plan is made from, all taken in one moment."""

    facts: HostFacts
    services: tuple[ServiceStatus, ...]
    artifacts: tuple[Artifact, ...]


async def plan_deploy(context: FleetContext, request: DeployRequest) -> StoredPlan:
    """The plan of each host of the pattern. Raises OperationError where the request itself cannot be met."""
    if not request.model and not request.repository:
        raise OperationError(
            "no-model", "name a model or give --repo owner/name", "fleet models lists them", usage=True
        )
    _demand_address(request.bind_address)
    demand_options(request)
    hosts = context.select(request.pattern)
    request = _with_key_id(context, named(request))
    hubs = list(dict.fromkeys(_hub(host) for host in hosts))
    found, states = await asyncio.gather(
        asyncio.gather(*(resolve_for(request, *hub) for hub in hubs), return_exceptions=True),
        asyncio.gather(*(gather_state(context, host) for host in hosts)),
    )
    models = dict(zip(hubs, found, strict=True))
    _raise_where_nothing_resolves(models)
    request = await with_installer(request, [state.facts for state in states if isinstance(state, HostState)])
    models = await with_installed_backends(request, hosts, states, models)
    decider = decider_for(context.database, request)

    def plan_all() -> list[PlannedHost]:
        pairs = zip(hosts, states, strict=True)
        return [_plan_of(host, state, request, models[_hub(host)], decider) for host, state in pairs]

    planned = await in_daemon_thread(plan_all)
    body = "".join(host.model_dump_json() for host in planned)
    plan_id = hashlib.sha256(f"{request.model_dump_json()}{body}".encode()).hexdigest()[:12]
    plan = StoredPlan(plan_id=plan_id, request=request, hosts=tuple(planned))
    context.database.save_plan(plan_id, plan.model_dump_json())
    return plan


def _demand_address(address: str) -> None:
    """A name would do for some servers and not for others, and nobody could say whether it means loopback."""
    try:
        if address:
            ipaddress.ip_address(address)
    except ValueError:
        message = f"--bind takes an IP address of the host, not '{address}'"
        raise OperationError("usage", message, "0.0.0.0 listens on all of them", usage=True) from None


def load_plan(context: FleetContext, plan_id: str) -> StoredPlan:
    """A plan that `plan_deploy` kept. Raises OperationError where there is none."""
    body = context.database.load_plan(plan_id)
    if body is None:
        raise OperationError("no-such-plan", f"plan {plan_id} is not known here", "repeat the deploy command")
    return StoredPlan.model_validate_json(body)


async def gather_state(context: FleetContext, host: Host) -> HostState | Problem:
    """Facts, services and model files of one host, asked for side by side; or why they could not be had."""
    try:
        async with context.pool.client(host) as agent:
            return await state_from(context, agent)
    except Exception as error:
        return problem_of(error)


async def state_from(context: FleetContext, agent: AgentClient) -> HostState:
    """As `gather_state`. Raises a TransportError."""
    facts, services, artifacts = await asyncio.gather(agent.facts(), agent.list_services(), agent.list_artifacts())
    learnt = load_observations(context.database)
    return HostState(facts.model_copy(update={"observed_memory": learnt}), services, artifacts)


def replan(host: Host, state: HostState, planned: PlannedHost, request: DeployRequest) -> PlannedDeployment:
    """The same plan from fresh facts. What was chosen once (backend, quantization, context, port) stays chosen."""
    shown = planned.shown
    assert planned.resolved is not None
    kept = filled(request, planned.resolved, shown.service) if shown.service is not None else request
    chosen = kept.model_copy(
        update={
            "backend": shown.backend,
            "quantization": shown.quantization,
            "context_length": shown.context_length or None,
            "port": shown.port or None,
        }
    )
    return plan_host(host, state.facts, state.services, chosen, planned.resolved, state.artifacts)


def _plan_of(
    host: Host,
    state: HostState | Problem,
    request: DeployRequest,
    resolved: ResolvedModel | BaseException,
    decider: Decider | None,
) -> PlannedHost:
    if isinstance(state, Problem):
        return PlannedHost(deployment=unreachable_plan(host.name, state))
    if isinstance(resolved, BaseException):
        problem = problem_of(resolved if isinstance(resolved, Exception) else RuntimeError(str(resolved)))
        return PlannedHost(deployment=unreachable_plan(host.name, problem))
    deployment = plan_host(host, state.facts, state.services, request, resolved, state.artifacts, decider)
    return PlannedHost(deployment=deployment, resolved=resolved)


def _hub(host: Host) -> tuple[str, str]:
    """The hub that a host downloads from, "" = the usual one, and the reference to its token."""
    return host.environment.get("HF_ENDPOINT", ""), host.hub_token or ""


def _with_key_id(context: FleetContext, request: DeployRequest) -> DeployRequest:
    """Tells one key from another, without keeping any. Raises OperationError where the reference leads nowhere."""
    if not request.api_key:
        return request
    key_id = identify(resolve_api_key(request.api_key), context.settings.state_dir)
    return request.model_copy(update={"api_key_id": key_id})


def _raise_where_nothing_resolves(models: dict[tuple[str, str], ResolvedModel | BaseException]) -> None:
    """One endpoint that is down costs only its hosts; a model that nobody knows is the user's to correct."""
    errors = [model for model in models.values() if isinstance(model, BaseException)]
    for error in errors:
        if not isinstance(error, Exception) or (isinstance(error, OperationError) and error.usage):
            raise error
    if errors and len(errors) == len(models):
        raise errors[0]
