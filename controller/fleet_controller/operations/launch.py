"""Applying a service and waiting until it answers, over lost links and agent restarts."""

from collections.abc import AsyncGenerator

from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.services import DesiredState, ServiceSpec, ServiceState, ServiceStatus, Successor
from fleet_controller.operations.contact import ask
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.problems import OperationError
from fleet_controller.transport.errors import HostUnreachable, NoAgent
from fleet_controller.transport.patience import Patience
from fleet_inventory.hosts import Host

# The agent goes on trying for ever; someone who waits at a terminal learns after so many crashes that it will not do.
CRASHES_BEFORE_GIVING_UP = 2
# A start may be refused once or twice while a predecessor's port or memory becomes free; then somebody else has it.
REFUSALS_BEFORE_GIVING_UP = 3
# Somebody else stopped or deployed the service meanwhile: that is what they want now, and no reason to go back.
TAKEN_OVER = frozenset({"replaced", "stopped"})


class LaunchFailed(OperationError):
    """The service did not get READY."""


async def launch(context: FleetContext, host: Host, spec: ServiceSpec) -> AsyncGenerator[HostEvent]:
    """Apply `spec` and follow it to READY; a ready server of its name goes on until then, where the host has room.

    Raises LaunchFailed or a TransportError.
    """
    yield HostEvent(host=host.name, stage="serve", message=f"starting {spec.name} on port {spec.port}")
    applied = await ask(context, host, lambda agent: agent.apply_service(spec, keep_former=True))
    wanted = applied.successor.spec_digest if applied.successor is not None else applied.spec_digest
    if applied.ended_first_because:
        message = f"the old server of {spec.name} ended first: {applied.ended_first_because}"
        yield HostEvent(host=host.name, stage="serve", message=message)
    async for event in until_ready(context, host, spec.name, wanted):
        yield event


async def until_ready(context: FleetContext, host: Host, name: str, wanted: str = "") -> AsyncGenerator[HostEvent]:
    """Follow a service to READY, with the spec of that digest where one is given, over lost links and agent restarts.

    Raises LaunchFailed or a TransportError: HostUnreachable or NoAgent once the host was away for
    `settings.host_patience_seconds`.
    """
    patience = Patience(host.name, context.settings.host_patience_seconds)
    said = ""
    planned_starts: set[int] = set()  # Unix ms of every start that the agent put off while we looked
    while True:
        try:
            async with context.pool.client(host) as agent:
                patience.heard()
                async for status in agent.watch_service(name):
                    successor = _successor(status, wanted)
                    if successor is None:
                        if status.state is ServiceState.BACKING_OFF:
                            planned_starts.add(status.next_start_unix_ms or 0)
                        if _is_ready(status, wanted, len(planned_starts)):
                            return
                    text = _text(status) if successor is None else _text_beside(successor)
                    if text != said:
                        said = text
                        yield HostEvent(host=host.name, stage="serve", message=text)
        except (HostUnreachable, NoAgent) as error:
            patience.demand(error)
        yield HostEvent(host=host.name, stage="serve", message="connection lost; the host works on, reconnecting")
        said = ""
        await patience.pause()


def _successor(status: ServiceStatus, wanted: str) -> Successor | None:
    """What we applied, while it is on its way beside the old server. Raises LaunchFailed where it was given up."""
    successor = status.successor
    if successor is None or successor.spec_digest != wanted or status.spec_digest == wanted:
        return None
    if successor.state is ServiceState.FAILED:
        raise _given_up(successor)
    return successor


def _given_up(successor: Successor) -> LaunchFailed:
    name, problem = successor.spec.name, successor.problem
    remedy = f"fleet logs {name} shows what it printed"
    if problem is None:
        return LaunchFailed("start-failed", f"{name}'s new server ended before it was ready", remedy)
    message = f"{name}'s new server: {problem.message}"
    return LaunchFailed(problem.code, message, problem.remedy or remedy, tail=problem.tail)


def _is_ready(status: ServiceStatus, wanted: str, times_put_off: int) -> bool:
    """READY with our spec; raises LaunchFailed where it will not get there."""
    if status.desired is DesiredState.STOPPED:
        raise LaunchFailed("stopped", f"{status.spec.name} was stopped by someone else meanwhile", "fleet ps")
    if wanted and status.spec_digest and status.spec_digest != wanted:
        raise LaunchFailed(
            "replaced", f"{status.spec.name} was deployed differently by someone else meanwhile", "fleet ps"
        )
    hopeless = status.restarts >= CRASHES_BEFORE_GIVING_UP or times_put_off >= REFUSALS_BEFORE_GIVING_UP
    if status.state is ServiceState.FAILED or (status.state is ServiceState.BACKING_OFF and hopeless):
        raise _failure(status)
    return status.state is ServiceState.READY


def _failure(status: ServiceStatus) -> LaunchFailed:
    name = status.spec.name
    remedy = f"fleet logs {name} shows what it printed"
    if status.problem is not None:
        problem = status.problem
        return LaunchFailed(problem.code, problem.message, problem.remedy or remedy, tail=problem.tail)
    code = f" with exit code {status.last_exit_code}" if status.last_exit_code is not None else ""
    return LaunchFailed("start-failed", f"{name} ended{code} before it was ready", remedy)


def _text_beside(successor: Successor) -> str:
    text = f"{successor.spec.name} starts beside the old server"
    if successor.port != successor.spec.port:
        text += f", for a trial on port {successor.port}"
    return f"{text}: {successor.problem.message}" if successor.problem is not None else text


def _text(status: ServiceStatus) -> str:
    name = status.spec.name
    state = status.state.value.removeprefix("SERVICE_STATE_").replace("_", " ").lower()
    if status.problem is not None:
        return f"{name} is {state}: {status.problem.message}"
    return f"{name} is {state}"
