"""Warm connections to agents: one link and one channel a host, opened when first needed.

A host that is down costs only its own caller: connecting to hosts runs side by side, SSH handshakes bounded by
a semaphore. Where a host keeps its agent's socket is remembered in <state_dir>/agents.json; what is remembered
wrongly is found again by asking the host.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from fleet_controller.domain.agents import AgentIdentity
from fleet_controller.domain.jobs import JobEvent
from fleet_controller.pki.keeper import Enrolment, IdentityKeeper
from fleet_controller.transport.client import AgentClient, open_channel
from fleet_controller.transport.discovery import discover, start_agent
from fleet_controller.transport.errors import HostUnreachable, NoAgent, TransportError
from fleet_controller.transport.link import HostLink
from fleet_controller.transport.local import LocalLink
from fleet_controller.transport.patience import Patience
from fleet_controller.transport.socket_memory import SocketMemory, way_to
from fleet_inventory.host_file import Transport
from fleet_inventory.hosts import Host

SSH_HANDSHAKES_AT_ONCE = 32
# After an agent was started it needs a moment until its socket answers.
START_LIMIT_SECONDS = 15.0
# Whoever follows a job may wait for a host to be started again.
JOB_PATIENCE_SECONDS = 600.0

Explain = Callable[[str], TransportError | None]


def _no_word(details: str) -> TransportError | None:
    return None


@dataclass
class _Contact:
    """What is open to one host. The lock makes callers of one host share one connection attempt."""

    host: Host
    link: HostLink | None = None
    way: str = ""  # that the link and the channel took
    channel: grpc.aio.Channel | None = None
    explain: Explain = _no_word  # what gRPC says of the channel, in words for a user
    identity: AgentIdentity | None = None
    enrolment: Enrolment | None = None  # over TLS: whose certificate the channel was opened for, or a newer one
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def over_tls(self) -> bool:
        return self.enrolment is not None


class AgentPool:
    """Agents by host. Use `async with pool.client(host) as agent`; close the pool with `await pool.close()`."""

    def __init__(self, state_dir: Path, ssh_handshakes_at_once: int = SSH_HANDSHAKES_AT_ONCE) -> None:
        self._sockets = SocketMemory(state_dir / "agents.json")
        self._identities = IdentityKeeper(state_dir)
        self._contacts: dict[str, _Contact] = {}
        self._handshakes = asyncio.Semaphore(ssh_handshakes_at_once)

    @asynccontextmanager
    async def client(self, host: Host) -> AsyncIterator[AgentClient]:
        """A client whose agent has shaken hands on this connection. Raises a TransportError.

        An installed agent that is not running is started first. The connection stays warm afterwards; it is
        dropped when the caller's block ended in HostUnreachable or NoAgent.
        """
        contact = self._contact(host)
        async with contact.lock:
            client = await self._ready_client(contact)
        try:
            yield client
        except (HostUnreachable, NoAgent):
            await self._drop_if(contact, client.channel)
            raise

    async def identity(self, host: Host) -> AgentIdentity:
        """Who answered the handshake of the present connection."""
        async with self.client(host):
            identity = self._contact(host).identity
            assert identity is not None
            return identity

    @asynccontextmanager
    async def link(self, host: Host) -> AsyncIterator[HostLink]:
        """The connection under the agent, for bring-up: works on a host that has no agent."""
        contact = self._contact(host)
        async with contact.lock:
            link = await self._open_link(contact)
        yield link

    def remember(self, host: Host, socket_path: str) -> None:
        """Bring-up tells where the agent of a host listens; empty forgets it."""
        self._sockets.put(host, socket_path)

    def answers_over_tls(self, host: Host) -> bool:
        """Whether the present connection to the host is one over TLS, and warm."""
        contact = self._contacts.get(host.name)
        return contact is not None and contact.over_tls and contact.channel is not None and _is_warm(contact.channel)

    @property
    def identities(self) -> IdentityKeeper:
        """The authority that transport `tls` rests on."""
        return self._identities

    async def reset_channel(self, host: Host) -> None:
        """Drops the channel but keeps the link: the agent behind the socket is another process now."""
        contact = self._contact(host)
        async with contact.lock:
            await _close_channel(contact)

    async def try_socket(self, host: Host, socket_path: str) -> AgentIdentity:
        """One handshake on a fresh channel to `socket_path`, which is remembered where it answers. Raises NoAgent."""
        contact = self._contact(host)
        async with contact.lock:
            link = await self._open_link(contact)
            try:
                await self._open_client(contact, link, socket_path)
            except BaseException:
                await _close_channel(contact)
                raise
            self.remember(host, socket_path)
            assert contact.identity is not None
            return contact.identity

    async def follow_job(
        self, host: Host, job_id: str, after: int = 0, patience_seconds: float = JOB_PATIENCE_SECONDS
    ) -> AsyncIterator[JobEvent]:
        """All events of a job above `after`, over lost links and agent restarts, until its final event.

        Raises HostUnreachable or NoAgent once the host was away for `patience_seconds`.
        """
        patience = Patience(host.name, patience_seconds)
        while True:
            try:
                async with self.client(host) as agent:
                    patience.heard()
                    async for event in agent.watch_job(job_id, after):
                        after = event.sequence
                        yield event
                        if event.state is not None and event.state.final:
                            return
            except (HostUnreachable, NoAgent) as error:
                patience.demand(error)
            # Also where a stream ended without a final event: the agent went away in good order.
            await patience.pause()

    async def drop(self, host: Host) -> None:
        """Closes what is open to a host."""
        contact = self._contacts.get(host.name)
        if contact:
            async with contact.lock:
                await _close_contact(contact)

    @property
    def warm_connections(self) -> int:
        """How many agents have an open channel."""
        return sum(contact.channel is not None for contact in self._contacts.values())

    async def close(self) -> None:
        """Closes every connection."""
        contacts, self._contacts = list(self._contacts.values()), {}
        await asyncio.gather(*(_close_contact(contact) for contact in contacts), return_exceptions=True)

    def _contact(self, host: Host) -> _Contact:
        contact = self._contacts.get(host.name)
        if contact is None:
            contact = self._contacts[host.name] = _Contact(host)
        contact.host = host
        return contact

    async def _ready_client(self, contact: _Contact) -> AgentClient:
        await _close_stale(contact)
        if contact.channel and contact.identity and _is_warm(contact.channel):
            client = _client(contact, contact.channel)
            await self._renew_if_due(contact, client)
            return client
        if contact.host.transport is Transport.TLS:
            return await self._open_tls(contact)
        link = await self._open_link(contact)
        try:
            return await self._shake_hands(contact, link)
        except BaseException:
            await _close_channel(contact)
            raise

    async def _open_link(self, contact: _Contact) -> HostLink:
        await _close_stale(contact)
        if contact.link is None:
            host = contact.host
            contact.link = await self._connect(host)
            contact.way = _way(host)
        return contact.link

    async def _connect(self, host: Host) -> HostLink:
        if host.transport is Transport.LOCAL:
            return LocalLink(host.name)
        from fleet_controller.transport import ssh  # asyncssh loads only where an SSH host is contacted

        async with self._handshakes:
            return await ssh.connect(host)

    async def _open_tls(self, contact: _Contact) -> AgentClient:
        """No SSH, and so nothing is started where no agent runs. Raises NotEnrolled, NoAgent, HostUnreachable."""
        from fleet_controller.transport import tls  # as asyncssh: loads only where it is needed

        host = contact.host
        enrolment = tls.demand_enrolment(self._identities, host)
        await _close_channel(contact)
        contact.way = _way(host)
        contact.channel = tls.open_tls_channel(enrolment, self._identities)
        contact.explain = lambda details: tls.explain(host, enrolment, details)
        contact.enrolment = enrolment
        client = _client(contact, contact.channel)
        try:
            contact.identity = await client.handshake(tls.CONNECT_SECONDS)
        except BaseException as error:
            connected = _is_warm(contact.channel)
            await _close_channel(contact)
            if isinstance(error, HostUnreachable) and not connected:
                raise tls.silent(host, enrolment) from None
            raise
        # It was let in: what breaks from now on is the connection, or the agent that ends.
        contact.explain = lambda details: tls.lost(host, enrolment, details)
        client = _client(contact, contact.channel)
        await self._renew_if_due(contact, client)
        return client

    async def _renew_if_due(self, contact: _Contact, client: AgentClient) -> None:
        """On any contact, also on a connection that has been warm for months."""
        if contact.enrolment is not None:
            from fleet_controller.transport import tls

            contact.enrolment = await tls.renew_if_due(client, self._identities, contact.host, contact.enrolment)

    async def _shake_hands(self, contact: _Contact, link: HostLink) -> AgentClient:
        remembered = self._sockets.get(contact.host)
        if remembered:
            with suppress(NoAgent):
                return await self._open_client(contact, link, remembered)
        found = await discover(link, contact.host)
        if not found.running:
            await start_agent(link, contact.host, found)
        client = await self._wait_for_agent(contact, link, found.socket_path)
        self._sockets.put(contact.host, found.socket_path)
        return client

    async def _wait_for_agent(self, contact: _Contact, link: HostLink, socket_path: str) -> AgentClient:
        deadline = asyncio.get_running_loop().time() + START_LIMIT_SECONDS
        while True:
            try:
                return await self._open_client(contact, link, socket_path)
            except NoAgent:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(0.1)

    async def _open_client(self, contact: _Contact, link: HostLink, socket_path: str) -> AgentClient:
        await _close_channel(contact)
        contact.channel = open_channel(await link.forward(socket_path))
        client = _client(contact, contact.channel)
        contact.identity = await client.handshake()
        return client

    async def _drop_if(self, contact: _Contact, channel: grpc.aio.Channel) -> None:
        """Another caller may have reconnected meanwhile; its connection stays."""
        if contact.channel is channel:
            async with contact.lock:
                if contact.channel is channel:
                    await _close_channel(contact)
                    if contact.link and contact.link.closed:
                        await _close_contact(contact)


def _way(host: Host) -> str:
    return f"{way_to(host)} {host.tls_port}" if host.transport is Transport.TLS else way_to(host)


def _client(contact: _Contact, channel: grpc.aio.Channel) -> AgentClient:
    link = contact.link
    return AgentClient(contact.host.name, channel, lambda: link is None or link.closed, contact.explain)


def _is_warm(channel: grpc.aio.Channel) -> bool:
    """A channel whose agent died is no longer ready, which costs nothing to ask."""
    return channel.get_state() is grpc.ChannelConnectivity.READY


async def _close_stale(contact: _Contact) -> None:
    """Closes a link that broke, or that leads where hosts.yaml no longer says that the host is."""
    broken = contact.link is not None and contact.link.closed
    moved = (contact.link or contact.channel) and contact.way != _way(contact.host)
    if broken or moved:
        await _close_contact(contact)


async def _close_channel(contact: _Contact) -> None:
    channel, contact.channel, contact.identity, contact.explain = contact.channel, None, None, _no_word
    contact.enrolment = None
    if channel:
        await channel.close()


async def _close_contact(contact: _Contact) -> None:
    with suppress(TransportError):
        await _close_channel(contact)
    link, contact.link = contact.link, None
    if link:
        await link.close()
