"""List, stop and read the model servers of many hosts."""

import asyncio
from collections.abc import AsyncGenerator

from fleet_controller.domain.base import Problem
from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.rollouts import HostPhase
from fleet_controller.domain.services import DesiredState, ForeignServer, ServiceStatus
from fleet_controller.fanout import as_they_finish, merged
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.problems import problem_of
from fleet_controller.operations.reports import HostServices, LogPiece
from fleet_controller.rolling.store import RolloutStore
from fleet_controller.transport.client import AgentClient
from fleet_controller.transport.errors import AgentRefused, TransportError
from fleet_inventory.hosts import Host, Transport


async def list_services(
    context: FleetContext, pattern: str, measure_rates: bool = False, find_foreign: bool = False
) -> AsyncGenerator[HostServices]:
    """The services of each host, in the order of the answers.

    `measure_rates`: how fast they generate now; `find_foreign`: also the servers that others started there.
    """

    async def of_host(host: Host) -> HostServices:
        where = {"host": host.name, "address": await _address(host), "transport": host.transport}
        try:
            async with context.pool.client(host) as agent:
                services, foreign = await asyncio.gather(
                    agent.list_services(measure_rates=measure_rates), _foreign(agent, find_foreign)
                )
        except Exception as error:
            return HostServices(problem=problem_of(error), **where)
        return HostServices(services=services, foreign=foreign, reachable=True, **where)

    async for found in as_they_finish(context.select(pattern), of_host):
        yield found


async def _address(host: Host) -> str:
    if host.transport == Transport.LOCAL:
        return ""
    from fleet_controller.transport.ssh_login import dialled_name

    return await dialled_name(host)


async def _foreign(agent: AgentClient, wanted: bool) -> tuple[ForeignServer, ...]:
    """Empty where the agent is too old to look, or its look failed: a host's own services are listed all the same."""
    if not wanted:
        return ()
    try:
        return await agent.find_servers()
    except TransportError:
        return ()


async def stop_services(
    context: FleetContext, pattern: str, model: str, everything: bool, remove: bool
) -> AsyncGenerator[HostEvent]:
    """Stop `model`, or everything, on each host; ends with one `done` event a host."""
    hosts = context.select(pattern)
    streams = [_stop_on(context, host, model, everything, remove) for host in hosts]
    async for event in merged(streams):
        yield event


async def _stop_on(
    context: FleetContext, host: Host, model: str, everything: bool, remove: bool
) -> AsyncGenerator[HostEvent]:
    name = host.name
    try:
        async with context.pool.client(host) as agent:
            present = await agent.list_services()
            chosen = [status for status in present if everything or status.spec.name == model]
            running = [status for status in chosen if remove or status.desired != DesiredState.STOPPED]
            for status in running:
                yield HostEvent(host=name, stage="stop", message=f"stopping {status.spec.name}")
                await agent.stop_service(status.spec.name, remove=remove)
            _leave_stopped(context, name, [status.spec.name for status in chosen])
            yield HostEvent(
                host=name, stage="stop", message=_stopped(chosen, running, model), done=True, changed=bool(running)
            )
    except Exception as error:
        yield HostEvent(host=name, stage="stop", done=True, problem=problem_of(error))


def _leave_stopped(context: FleetContext, host: str, services: list[str]) -> None:
    """A rollout that was cut off while it changed this host does not start again what was stopped since."""
    if not context.settings.database_file.exists():
        return
    store = RolloutStore(context.database)
    for number in [rollout.number for rollout in store.unfinished() if rollout.service in services]:
        with store.carrying_out(number) as ours:  # whoever is at it sees by itself what became of its service
            rollout = store.get(number)
            if not ours or rollout is None:
                continue
            message = f"{rollout.service} was stopped after the rollout was cut off"
            problem = Problem(code="stopped", message=message, remedy="deploy it again, or undo the rollout")
            for part in rollout.of(HostPhase.CHANGING):
                if part.host == host:
                    store.set_host(number, part.model_copy(update={"phase": HostPhase.FAILED, "problem": problem}))


def _stopped(chosen: list[ServiceStatus], running: list[ServiceStatus], model: str) -> str:
    if running:
        return "stopped " + ", ".join(status.spec.name for status in running)
    if chosen:
        return f"{model or 'everything'} is stopped already; nothing to change"
    return f"{model or 'nothing'} is not deployed here; nothing to change" if model else "nothing runs here"


async def read_logs(
    context: FleetContext, pattern: str, model: str, tail_lines: int, follow: bool
) -> AsyncGenerator[LogPiece]:
    """Pieces of a service's log from each host; with `follow` it goes on until the caller leaves."""
    hosts = context.select(pattern)
    async for piece in merged([_read_on(context, host, model, tail_lines, follow) for host in hosts]):
        yield piece


async def _read_on(
    context: FleetContext, host: Host, model: str, tail_lines: int, follow: bool
) -> AsyncGenerator[LogPiece]:
    try:
        async with context.pool.client(host) as agent:
            names = [status.spec.name for status in await agent.list_services()]
            if model not in names:
                yield LogPiece(host=host.name, service=model, problem=_not_deployed(model, names))
                return
            async for data in agent.read_log(model, tail_lines=tail_lines, follow=follow):
                yield LogPiece(host=host.name, service=model, data=data)
    except AgentRefused as error:
        yield LogPiece(host=host.name, service=model, problem=error.problem)
    except Exception as error:
        yield LogPiece(host=host.name, service=model, problem=problem_of(error))


def _not_deployed(model: str, names: list[str]) -> Problem:
    there_is = f"deployed here: {', '.join(names)}" if names else "no model is deployed here"
    return Problem(code="not-deployed", message=f"{model} is not deployed here; {there_is}", remedy="fleet ps")
