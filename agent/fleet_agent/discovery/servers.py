"""Finding model servers that others started: who answers on the ports that engines use, and as what.

They are listed, and benched where somebody asks for it. Nothing here or elsewhere stops one.
"""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fleet_agent.discovery.identify import identify
from fleet_agent.discovery.listeners import Listener, command_of, find_listeners, user_name

DEFAULT_PORTS = (8080, 8000, 30000, 1234, 11434)


@dataclass(frozen=True)
class ForeignServer:
    """A model server of this host that is not ours. backend is "" where it does not say what it is."""

    port: int
    backend: str = ""
    version: str = ""
    models: tuple[str, ...] = ()
    pid: int | None = None
    user: str = ""
    command: str = ""
    needs_key: bool = False
    address: str = "127.0.0.1"


@dataclass(frozen=True)
class OwnServers:
    """What is ours: every process of our services; ports where the process that listens is not ours to see or start.

    shared_ports: of servers that our services share (one of theirs answers there, and it serves for us).
    """

    pids: frozenset[int] = frozenset()
    ports: frozenset[int] = frozenset()
    shared_ports: frozenset[int] = frozenset()


async def find_servers(ports: Sequence[int], own: OwnServers) -> tuple[ForeignServer, ...]:
    """The model servers on these ports (none: DEFAULT_PORTS), on any address of this host, but for our own."""
    wanted = frozenset(ports or DEFAULT_PORTS)
    listeners = await asyncio.to_thread(find_listeners, wanted)
    foreign = [one for one in listeners if not _is_own(one, own)]
    found = await asyncio.gather(*(_server(one) for one in foreign))
    servers: dict[int, ForeignServer] = {}
    for server in found:
        if server is not None:
            servers.setdefault(server.port, server)  # loopback comes first; one server may listen on several addresses
    return tuple(servers[port] for port in sorted(servers))


def _is_own(listener: Listener, own: OwnServers) -> bool:
    """By process; by port only where the host does not tell the process."""
    if listener.port in own.shared_ports:
        return True
    return listener.pid in own.pids if listener.pid is not None else _unseen_own(listener, own.ports)


def _unseen_own(listener: Listener, ports: Collection[int]) -> bool:
    # Ours run as this agent's user, whose processes the host does tell (Linux): a known user is another one's.
    return listener.user_id is None and listener.port in ports


async def _server(listener: Listener) -> ForeignServer | None:
    known = await identify(listener.reached_at, listener.port)
    if known is None:
        return None
    return ForeignServer(
        port=listener.port,
        backend=known.backend,
        version=known.version,
        models=known.models,
        pid=listener.pid,
        user=user_name(listener.user_id),
        command=await asyncio.to_thread(command_of, listener.pid),
        needs_key=known.needs_key,
        address=listener.reached_at,
    )
