"""What ran on a host before a change: seen, measured where a gate wants it, and brought back exactly."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fleet_controller.domain.base import Problem
from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.rollouts import Before, Gate, Strategy
from fleet_controller.domain.services import DesiredState, ServiceSpec, ServiceState, ServiceStatus
from fleet_controller.operations.contact import ask
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.golden import GoldenBench
from fleet_controller.operations.launch import TAKEN_OVER, launch
from fleet_controller.operations.planning import PlannedHost
from fleet_controller.operations.problems import OperationError
from fleet_controller.planning.engine_state import Move
from fleet_controller.planning.service import same_service
from fleet_controller.transport.client import AgentClient
from fleet_inventory.hosts import Host


async def before_of(context: FleetContext, host: Host, service: str) -> Before:
    """What the host has under the service's name now. Raises a TransportError."""
    present = await _present(context, host, service)
    if present is None or not present.spec_digest:  # a damaged record has a name alone: there is nothing to go back to
        return Before()
    return Before(spec=present.spec, running=present.desired is DesiredState.RUNNING)


async def goes_on(context: FleetContext, host: Host, service: str, before: Before) -> bool:
    """Whether what ran before is what runs, and is ready: a replace may have left it alone. Raises a TransportError."""
    present = await _present(context, host, service)
    return present is not None and present.spec == before.spec and present.state is ServiceState.READY


async def taken_over(context: FleetContext, host: Host, service: str, problem: Problem) -> bool:
    """Whether a change failed since somebody else wants something else of the service. Raises a TransportError."""
    if problem.code in TAKEN_OVER:
        return True
    present = await _present(context, host, service)
    return present is not None and present.desired is DesiredState.STOPPED


async def _present(context: FleetContext, host: Host, service: str) -> ServiceStatus | None:
    services = await ask(context, host, lambda agent: agent.list_services())
    return next((status for status in services if status.spec.name == service), None)


async def restore(context: FleetContext, host: Host, service: str, before: Before) -> AsyncGenerator[HostEvent]:
    """Bring back what ran before: the same spec (engine version, artifact, flags), stopped where it was stopped, or
    nothing. Raises OperationError or a TransportError.
    """
    if before.spec is not None:
        async for event in launch(context, host, before.spec):
            yield event
    if before.spec is None or not before.running:
        yield HostEvent(host=host.name, stage="stop", message=f"stopping {service}")

        async def stop(agent: AgentClient) -> None:
            if service in [status.spec.name for status in await agent.list_services()]:
                await agent.stop_service(service, remove=before.spec is None)

        await ask(context, host, stop)


async def demand_ours(context: FleetContext, host: Host, service: str, before: Before, put: ServiceSpec | None) -> None:
    """Raises OperationError where somebody deployed the service differently since: that is what they want now."""
    now = await before_of(context, host, service)
    known = [spec for spec in (before.spec, put) if spec is not None]
    if now.spec is None or any(_same_process(now.spec, spec) for spec in known):
        return
    message = f"{service} was deployed differently by someone else since"
    raise OperationError("changed-since", message, "fleet ps; deploy what you want there")


def _same_process(now: ServiceSpec, spec: ServiceSpec) -> bool:
    """The plan does not know yet which options a build leaves out, nor the version that it turns out to be."""
    return same_service(now, spec) or (now.tool, now.model, now.port) == (spec.tool, spec.model, spec.port)


class GoldenGate:
    """Whether a canary is as fast on what is new as on what ran before, and answers the same."""

    def __init__(self, context: FleetContext, host: Host, threshold: float, move: Move) -> None:
        self._bench = GoldenBench(context, host, threshold)
        self._move = move

    async def measure_before(self) -> AsyncGenerator[HostEvent]:
        async for event in self._bench.before(self._move):
            yield event

    async def measure_after(self) -> AsyncGenerator[HostEvent]:
        """Raises OperationError "worse" with the figures."""
        async for event in self._bench.after(self._move):
            yield event


def gate_of(
    context: FleetContext, host: Host, strategy: Strategy, before: Before, planned: PlannedHost
) -> GoldenGate | None:
    """None where health is enough, or where nothing ran before: then there is nothing to compare with."""
    new = planned.shown.service
    if strategy.gate is not Gate.GOLDEN or not before.running or before.spec is None or new is None:
        return None
    return GoldenGate(context, host, strategy.golden_threshold, Move(old=before.spec, new=new))
