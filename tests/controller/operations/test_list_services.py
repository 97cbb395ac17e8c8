"""Listing services: an agent that is older than a call hides nothing else of its host."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.reports import HostServices
from fleet_controller.operations.services import list_services
from fleet_controller.transport import AgentClient
from fleet_controller.transport.client import open_channel
from fleet_inventory.hosts import Host
from fleet_proto.v1 import agent_pb2, agent_pb2_grpc, jobs_pb2, services_pb2

HOST = Host.model_validate({"name": "here", "address": "here", "transport": "local"})


class OldAgent(agent_pb2_grpc.AgentServicer):
    """It lists its services and knows nothing of strangers."""

    def __init__(self) -> None:
        self.measured: list[bool] = []

    async def ListServices(self, request: Any, context: Any) -> services_pb2.ListServicesReply:
        self.measured.append(request.measure_rates)
        spec = services_pb2.ServiceSpec(
            name="tiny-chat", backend="llama.cpp", tool=jobs_pb2.ToolRef(name="llama-server")
        )
        status = services_pb2.ServiceStatus(spec=spec, tokens_per_second=12.5 if request.measure_rates else None)
        return services_pb2.ListServicesReply(services=[status])


class NewAgent(OldAgent):
    async def FindServers(self, request: Any, context: Any) -> agent_pb2.FindServersReply:
        return agent_pb2.FindServersReply(servers=[agent_pb2.ForeignServer(port=11434, models=["llama3"])])


class FailingAgent(OldAgent):
    async def FindServers(self, request: Any, context: Any) -> agent_pb2.FindServersReply:
        raise RuntimeError("the look failed")


@asynccontextmanager
async def context_of(agent: OldAgent) -> AsyncIterator[FleetContext]:
    """A context whose only host answers through a real gRPC server."""
    with tempfile.TemporaryDirectory(prefix="fleet-t-") as folder:
        server = grpc.aio.server()
        agent_pb2_grpc.add_AgentServicer_to_server(agent, server)
        server.add_insecure_port(f"unix:{folder}/a.sock")
        await server.start()
        channel = open_channel(f"{folder}/a.sock")

        @asynccontextmanager
        async def client(host: Host) -> AsyncIterator[AgentClient]:
            yield AgentClient(host.name, channel)

        try:
            yield cast(FleetContext, SimpleNamespace(pool=SimpleNamespace(client=client), select=lambda _: (HOST,)))
        finally:
            await channel.close()
            await server.stop(None)


async def listed(agent: OldAgent, **wanted: bool) -> HostServices:
    async with context_of(agent) as context:
        [found] = [host async for host in list_services(context, "all", **wanted)]
    return found


@pytest.mark.parametrize("kind", [OldAgent, FailingAgent])
async def test_an_agent_that_cannot_look_for_strangers_still_lists_its_own(kind: type[OldAgent]) -> None:
    found = await listed(kind(), measure_rates=True, find_foreign=True)
    assert found.problem is None
    assert [status.tokens_per_second for status in found.services] == [12.5]
    assert found.foreign == ()


async def test_strangers_and_rates_are_asked_for_only_when_wanted() -> None:
    agent = NewAgent()  # type: ignore[abstract]  # the other calls stay unimplemented
    found = await listed(agent)
    assert (found.foreign, found.services[0].tokens_per_second) == ((), None)
    found = await listed(agent, measure_rates=True, find_foreign=True)
    assert [(server.port, server.models) for server in found.foreign] == [(11434, ("llama3",))]
    assert agent.measured == [False, True]


async def test_where_a_host_is_comes_with_its_services() -> None:
    found = await listed(OldAgent())  # type: ignore[abstract]
    assert (found.host, found.address, found.transport, found.reachable) == ("here", "", "local", True)
