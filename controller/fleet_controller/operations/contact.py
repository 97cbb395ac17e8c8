"""Questions and orders to an agent that may be repeated: over lost links, restarts and upgrades of the agent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from fleet_controller.operations.context import FleetContext
from fleet_controller.transport.client import AgentClient
from fleet_controller.transport.errors import HostUnreachable, NoAgent
from fleet_controller.transport.patience import Patience
from fleet_inventory.hosts import Host

Answer = TypeVar("Answer")


async def ask(context: FleetContext, host: Host, call: Callable[[AgentClient], Awaitable[Answer]]) -> Answer:
    """The answer of `call`, which is begun anew where the contact breaks: it must do no harm twice.

    Raises a TransportError: HostUnreachable or NoAgent once the host was away for `settings.host_patience_seconds`.
    """
    patience = Patience(host.name, context.settings.host_patience_seconds)
    while True:
        try:
            async with context.pool.client(host) as agent:
                return await call(agent)
        except (HostUnreachable, NoAgent) as error:
            patience.demand(error)
        await patience.pause()
