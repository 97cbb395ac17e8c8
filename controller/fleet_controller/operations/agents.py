"""Bring hosts up and look after their agents; the work itself is bringup's."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from fleet_controller.domain.events import AgentAction, HostEvent
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.problems import OperationError
from fleet_controller.pki.keeper import UnusableAuthorityError
from fleet_controller.settings import UnsafeFolderError
from fleet_inventory.hosts import Host, Transport


@dataclass(frozen=True)
class UpRequest:
    """Empty strings mean: as hosts.yaml says, from the hosts' own package index, under what the host has."""

    pattern: str
    transport: str = ""
    wheel_folder: str = ""
    force: bool = False
    fetch_wheels: bool = False
    manager: str = ""


async def bring_up(context: FleetContext, request: UpRequest) -> AsyncGenerator[HostEvent]:
    """Install and start the agent on each host; ends with one `done` event a host."""
    from fleet_controller import bringup

    hosts = _with_transport(context.select(request.pattern), request.transport)
    folder = Path(request.wheel_folder) if request.wheel_folder else None
    if folder is not None and not folder.is_dir():
        raise OperationError("no-wheels", f"{folder} is not a folder", "name the folder with the wheels", usage=True)
    try:
        context.pool.identities.ensure()  # the fleet's authority is made on the first `up`
    except (UnusableAuthorityError, UnsafeFolderError) as error:
        raise OperationError("unusable-authority", str(error)) from None
    options = bringup.UpOptions(
        wheel_folder=folder,
        fetch_wheels=request.fetch_wheels,
        force=request.force,
        manager=request.manager or None,
    )
    async for event in bringup.bring_up(hosts, context.pool, options):
        yield event


async def manage_agents(
    context: FleetContext, pattern: str, action: AgentAction, purge: bool
) -> AsyncGenerator[HostEvent]:
    """Status, upgrade, restart or removal of agents; ends with one `done` event a host."""
    from fleet_controller import bringup

    hosts = context.select(pattern)
    async for event in bringup.manage_agents(hosts, context.pool, action, purge=purge):
        yield event


def _with_transport(hosts: tuple[Host, ...], transport: str) -> tuple[Host, ...]:
    if not transport:
        return hosts
    try:
        chosen = Transport(transport)
    except ValueError:
        known = ", ".join(kind.value for kind in Transport)
        raise OperationError("usage", f"there is no transport '{transport}'; known: {known}", usage=True) from None
    return tuple(host.model_copy(update={"transport": chosen}) for host in hosts)
