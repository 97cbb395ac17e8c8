"""Control over TCP with mutual TLS, against a real agent: who is let in, who is not, and what the user is told."""

import asyncio
import datetime
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from fleet_controller.domain.agents import AgentIdentity
from fleet_controller.operations.rollout_carrier import AWAY
from fleet_controller.pki import keeper
from fleet_controller.pki.authority import Usage, new_key
from fleet_controller.pki.keeper import IdentityKeeper
from fleet_controller.pki.names import CONTROLLER
from fleet_controller.transport import tls
from fleet_controller.transport.client import AgentClient, open_channel
from fleet_controller.transport.errors import AgentRefused, HostUnreachable, NoAgent, NotEnrolled
from fleet_controller.transport.pool import AgentPool
from fleet_inventory.hosts import Host, Transport
from fleet_proto.v1 import agent_pb2
from fleet_proto.v1.agent_pb2_grpc import AgentStub
from support.agent_process import AgentProcess, agent_environment, running_agent, short_folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class World:
    """One agent, and a controller that may reach it over TLS only."""

    agent: AgentProcess
    environment: dict[str, str]
    host: Host
    state: Path
    pool: AgentPool

    @property
    def keeper(self) -> IdentityKeeper:
        return self.pool.identities

    @asynccontextmanager
    async def local(self) -> AsyncIterator[tuple[AgentClient, AgentIdentity]]:
        """The agent through its own socket, which stands for SSH here."""
        channel = open_channel(str(self.agent.socket_path))
        client = AgentClient(self.host.name, channel)
        try:
            yield client, await client.handshake()
        finally:
            await channel.close()

    async def enrol(self, keeper: IdentityKeeper | None = None, take_over: bool = False) -> None:
        async with self.local() as (client, identity):
            _, status = await tls.enrol(
                client, keeper or self.keeper, self.host, identity.machine_id, "127.0.0.1", take_over
            )
        assert status.listening, status.problem


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    host = Host(name="gpu1", address="127.0.0.1", transport=Transport.TLS, tls_port=free_port())
    pool = AgentPool(tmp_path / "state")
    with short_folder() as runtime:
        environment = agent_environment(tmp_path, runtime)
        async with running_agent(environment) as agent:
            yield World(agent, environment, host, tmp_path / "state", pool)
            await pool.close()


async def call_with(world: World, key: bytes | None, certificate: bytes | None, authority: bytes | None = None) -> None:
    """One call to the agent's port with any certificate. Raises what gRPC raises."""
    enrolment = world.keeper.enrolment("gpu1")
    assert enrolment is not None
    secret = grpc.ssl_channel_credentials(authority or world.keeper.ensure(), key, certificate)
    options = [("grpc.ssl_target_name_override", enrolment.name), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"127.0.0.1:{world.host.tls_port}", secret, options=options) as channel:
        stub: Any = AgentStub(channel)
        await stub.GetIdentity(agent_pb2.GetIdentityRequest(), timeout=20)


async def test_an_enrolled_host_is_controlled_without_ssh(world: World) -> None:
    with pytest.raises(NotEnrolled) as before:
        await world.pool.identity(world.host)
    assert "fleet up gpu1" in before.value.problem.remedy
    await world.enrol()
    assert (await world.pool.identity(world.host)).pid == world.agent.process.pid
    async with world.pool.client(world.host) as agent:
        assert (await agent.get_identity()).listening
    assert world.pool.answers_over_tls(world.host)


async def test_only_the_controllers_certificate_controls(world: World) -> None:
    """A host's own, one for a pull, none, another authority's, an expired one: refused, each by whom it must be."""
    await world.enrol()
    public, key = new_key()
    now = datetime.datetime.now(datetime.UTC)
    authority = world.keeper._authority()

    def issued(name: str, usage: Usage, days: float = 1) -> bytes:
        return authority.issue(public, name, usage, days, now).pem

    host_pair = issued("g1.abc.hosts.fleet.internal", Usage.HOST)
    for certificate in (host_pair, issued(CONTROLLER, Usage.CONTROLLER, days=-0.1), issued(CONTROLLER, Usage.HOST)):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call_with(world, key, certificate)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE  # TLS itself refused
    with pytest.raises(grpc.aio.AioRpcError) as nobody:
        await call_with(world, None, None)
    assert nobody.value.code() is grpc.StatusCode.UNAVAILABLE
    foreign = IdentityKeeper(world.state / "other")
    theirs = foreign.credentials()
    with pytest.raises(grpc.aio.AioRpcError) as stranger:
        await call_with(world, theirs.key_pem, theirs.certificate_pem)
    assert stranger.value.code() is grpc.StatusCode.UNAVAILABLE
    # Good for TLS and of our authority, but nobody who may control: the agent looks at the name.
    for name in (
        "gpu2.p1.pulls.fleet.internal",
        "controller.fleet.internal.evil.example",
        "x.controller.fleet.internal",
    ):
        with pytest.raises(grpc.aio.AioRpcError) as wrong_role:
            await call_with(world, key, issued(name, Usage.PULL))
        assert wrong_role.value.code() is grpc.StatusCode.PERMISSION_DENIED
    await call_with(world, key, issued(CONTROLLER, Usage.CONTROLLER))


async def test_every_call_is_guarded(world: World) -> None:
    """Unary and streaming calls alike, so that a new call cannot be forgotten."""
    await world.enrol()
    public, key = new_key()
    now = datetime.datetime.now(datetime.UTC)
    pull = world.keeper._authority().issue(public, "gpu2.p1.pulls.fleet.internal", Usage.PULL, 1, now)
    enrolment = world.keeper.enrolment("gpu1")
    assert enrolment is not None
    secret = grpc.ssl_channel_credentials(world.keeper.ensure(), key, pull.pem)
    options = [("grpc.ssl_target_name_override", enrolment.name)]
    async with grpc.aio.secure_channel(f"127.0.0.1:{world.host.tls_port}", secret, options=options) as channel:
        for method in agent_pb2.DESCRIPTOR.services_by_name["Agent"].methods:
            path = f"/fleet.v1.Agent/{method.name}"
            make: Callable[..., Any] = channel.unary_stream if method.server_streaming else channel.unary_unary
            call = make(path)(b"", timeout=20)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                if method.server_streaming:
                    async for _ in call:
                        pass
                else:
                    await call
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED, method.name
    assert world.agent.process.returncode is None  # Shutdown was refused, too


async def test_a_certificate_past_half_its_life_is_renewed_on_contact(world: World) -> None:
    await world.enrol()
    first = world.keeper.enrolment("gpu1")
    assert first is not None
    old = first.model_copy(update={"not_before": time.time() - 50 * 86400, "not_after": time.time() + 40 * 86400})
    world.keeper.keep(old)
    await world.pool.identity(world.host)
    renewed = world.keeper.enrolment("gpu1")
    assert renewed is not None
    assert renewed.not_after > old.not_after
    assert renewed.name == old.name
    await world.pool.drop(world.host)
    await world.pool.identity(world.host)  # the new certificate serves


async def test_a_connection_that_stays_warm_for_months_renews_as_well(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "HOST_DAYS", 0.25)  # less than certificates are backdated: half spent from the start
    await world.enrol()
    await world.pool.identity(world.host)
    monkeypatch.undo()
    short = world.keeper.enrolment("gpu1")
    await world.pool.identity(world.host)
    assert world.pool.answers_over_tls(world.host)
    renewed = world.keeper.enrolment("gpu1")
    assert short is not None and renewed is not None
    assert renewed.name == short.name
    assert renewed.not_after > short.not_after + 80 * 86400
    await world.pool.drop(world.host)
    await world.pool.identity(world.host)


async def test_a_host_that_comes_back_gets_no_name_that_it_had_before(world: World) -> None:
    """Revoked, enrolled, removed, enrolled: a stolen certificate of the first time stays nobody's."""
    await world.enrol()
    names = [_name(world)]
    world.keeper.revoke("gpu1")
    await world.enrol()
    names.append(_name(world))
    world.keeper.forget("gpu1")
    await world.enrol()
    names.append(_name(world))
    assert len(set(names)) == 3
    async with world.local() as (client, identity):  # another disk in the host, and the first one again
        await tls.enrol(client, world.keeper, world.host, "another", "127.0.0.1")
        await tls.enrol(client, world.keeper, world.host, identity.machine_id, "127.0.0.1")
    assert _name(world) not in names


async def test_machines_with_one_id_are_not_each_other(world: World) -> None:
    """Cloned images, and a host that says that it is another."""
    await world.enrol()
    twin = world.host.model_copy(update={"name": "gpu2"})
    async with world.local() as (client, identity):
        made, _ = await tls.enrol(client, world.keeper, twin, identity.machine_id, "127.0.0.1")
    assert made.name != _name(world)
    with pytest.raises(NotEnrolled, match="does not have this host's certificate"):
        await world.pool.identity(world.host)


def _name(world: World) -> str:
    found = world.keeper.enrolment("gpu1")
    assert found is not None
    return found.name


async def test_a_new_authority_ends_what_the_old_one_let_in(world: World) -> None:
    """A stolen controller's key must not go on over the connection that it has; a renewal ends none."""
    await world.enrol()
    enrolment = world.keeper.enrolment("gpu1")
    assert enrolment is not None
    thief = tls.open_tls_channel(enrolment, world.keeper)
    client = AgentClient("gpu1", thief)
    await client.handshake()
    await world.enrol()
    await client.handshake()
    await world.enrol(IdentityKeeper(world.state / "new"), take_over=True)
    with pytest.raises(NoAgent):
        await client.handshake()
    await thief.close()


async def test_strangers_are_few_and_leave(world: World) -> None:
    """A flood of connections that say nothing costs the agent no descriptors that it needs."""
    await world.enrol()
    strangers = [socket.create_connection(("127.0.0.1", world.host.tls_port)) for _ in range(300)]
    try:
        pid = world.agent.process.pid
        async with world.local() as (client, _):
            await client.get_identity()
            await client.list_services()
        assert len(list(Path(f"/proc/{pid}/fd").iterdir())) < 250
    finally:
        for stranger in strangers:
            stranger.close()
    await world.pool.identity(world.host)


async def test_an_expired_or_revoked_host_is_enrolled_again_over_ssh(world: World) -> None:
    await world.enrol()
    enrolment = world.keeper.enrolment("gpu1")
    assert enrolment is not None
    world.keeper.keep(enrolment.model_copy(update={"not_after": time.time() - 1}))
    with pytest.raises(NotEnrolled, match="expired"):
        await world.pool.identity(world.host)
    await world.enrol()
    await world.pool.identity(world.host)
    world.keeper.revoke("gpu1")
    await world.pool.drop(world.host)
    with pytest.raises(NotEnrolled, match="revoked"):
        await world.pool.identity(world.host)
    stolen = world.keeper.enrolment("gpu1")
    assert stolen is not None
    # Even a controller that forgot to look refuses: the old certificate has another name.
    world.keeper.keep(stolen.model_copy(update={"revoked": False}))
    with pytest.raises(NotEnrolled, match="does not have this host's certificate"):
        await world.pool.identity(world.host)
    await world.enrol()
    await world.pool.identity(world.host)


async def test_a_colleagues_controller_takes_nothing_over_by_mistake(world: World) -> None:
    await world.enrol()
    theirs = IdentityKeeper(world.state / "colleague")
    with pytest.raises(AgentRefused, match="another fleet's authority"):
        await world.enrol(theirs)
    await world.pool.identity(world.host)
    await world.enrol(theirs, take_over=True)
    await world.pool.drop(world.host)
    with pytest.raises(NotEnrolled):
        await world.pool.identity(world.host)


async def test_the_identity_outlives_the_agent(world: World) -> None:
    await world.enrol()
    await world.pool.identity(world.host)
    await world.agent.terminate()
    with pytest.raises(NoAgent, match="nothing listens"):
        await world.pool.identity(world.host)
    async with running_agent(world.environment):
        await world.pool.identity(world.host)


async def test_a_host_that_says_nothing_is_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that is off: a rollout may change it later, so that it must not look like a broken one."""
    await world.enrol()
    monkeypatch.setattr(tls, "CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        enrolment = world.keeper.enrolment("gpu1")
        assert enrolment is not None
        world.keeper.keep(enrolment.model_copy(update={"port": silent.getsockname()[1]}))
        with pytest.raises(HostUnreachable, match="does not answer") as away:
            await world.pool.identity(world.host)
    assert away.value.problem.code in AWAY


async def test_a_taken_port_is_told_and_the_socket_serves_on(world: World) -> None:
    with socket.socket() as squatter:
        squatter.bind(("0.0.0.0", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        host = world.host.model_copy(update={"tls_port": port})
        async with world.local() as (client, identity):
            _, status = await tls.enrol(client, world.keeper, host, identity.machine_id, "127.0.0.1")
            assert not status.listening
            assert str(port) in status.problem
            assert (await client.remove_identity()).enrolled is False


async def test_many_calls_at_once_share_one_connection(world: World) -> None:
    await world.enrol()
    identities = await asyncio.gather(*(world.pool.identity(world.host) for _ in range(20)))
    assert len({identity.pid for identity in identities}) == 1
    assert world.pool.warm_connections == 1


async def test_an_address_that_changed_is_not_believed(world: World) -> None:
    await world.enrol()
    moved = world.host.model_copy(update={"address": "127.0.0.2"})
    with pytest.raises(NotEnrolled, match="another address"):
        await world.pool.identity(moved)
