"""Applying a service and waiting until it answers, over lost links and agent restarts."""

import asyncio
from collections.abc import AsyncGenerator

from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.services import DesiredState, ServiceSpec, ServiceState, ServiceStatus
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.problems import OperationError
from fleet_controller.transport.errors import HostUnreachable, NoAgent
from fleet_inventory.hosts import Host

RETRY_FIRST_SECONDS = 0.5
RETRY_MOST_SECONDS = 10.0
PATIENCE_SECONDS = 600.0
# The agent goes on trying for ever; someone who waits at a terminal learns after so many crashes that it will not do.
CRASHES_BEFORE_GIVING_UP = 2
# A start may be refused once or twice while a predecessor's port or memory becomes free; then somebody else has it.
REFUSALS_BEFORE_GIVING_UP = 3


class LaunchFailed(OperationError):
    """The service did not get READY."""


async def launch(context: FleetContext, host: Host, spec: ServiceSpec) -> AsyncGenerator[HostEvent]:
    """Apply `spec` and follow it to READY. Raises LaunchFailed or a TransportError."""
    yield HostEvent(host=host.name, stage="serve", message=f"starting {spec.name} on port {spec.port}")
    async with context.pool.client(host) as agent:
        applied = await agent.apply_service(spec)
    loop = asyncio.get_running_loop()
    last_heard, wait = loop.time(), RETRY_FIRST_SECONDS
    said = ""
    planned_starts: set[int] = set()  # Unix ms of every start that the agent put off while we looked
    while True:
        try:
            async with context.pool.client(host) as agent:
                async for status in agent.watch_service(spec.name):
                    last_heard, wait = loop.time(), RETRY_FIRST_SECONDS
                    if status.state is ServiceState.BACKING_OFF:
                        planned_starts.add(status.next_start_unix_ms or 0)
                    if _is_ready(status, applied, len(planned_starts)):
                        return
                    text = _text(status)
                    if text != said:
                        said = text
                        yield HostEvent(host=host.name, stage="serve", message=text)
        except (HostUnreachable, NoAgent):
            if loop.time() - last_heard > PATIENCE_SECONDS:
                raise
        yield HostEvent(host=host.name, stage="serve", message="connection lost; the host works on, reconnecting")
        said = ""
        await asyncio.sleep(wait)
        wait = min(wait * 2, RETRY_MOST_SECONDS)


def _is_ready(status: ServiceStatus, applied: ServiceStatus, times_put_off: int) -> bool:
    """READY with our spec; raises LaunchFailed where it will not get there."""
    if applied.spec_digest and status.spec_digest and status.spec_digest != applied.spec_digest:
        raise LaunchFailed(
            "replaced", f"{status.spec.name} was deployed differently by someone else meanwhile", "fleet ps"
        )
    if status.desired is DesiredState.STOPPED:
        raise LaunchFailed("stopped", f"{status.spec.name} was stopped by someone else meanwhile", "fleet ps")
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


def _text(status: ServiceStatus) -> str:
    name = status.spec.name
    state = status.state.value.removeprefix("SERVICE_STATE_").replace("_", " ").lower()
    if status.problem is not None:
        return f"{name} is {state}: {status.problem.message}"
    return f"{name} is {state}"
