"""Many simulated agents in one process, for facts_fanout.py: python -m benchmarks.simulated_agents FOLDER COUNT

Each listens on FOLDER/NNN.sock and answers Handshake, GetFacts (what this machine's real probes said once) and
ListServices (none).
They share a process, so what a hundred of them cost the machine is less than a hundred real agents would.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc

import fleet_proto
from fleet_agent.configuration import AgentConfiguration
from fleet_agent.layout import Layout
from fleet_agent.probes import PROBES
from fleet_agent.probes.model import ProbeContext
from fleet_agent.probes.runner import ProbeRunner
from fleet_agent.server.facts import facts_message
from fleet_proto.v1 import common_pb2, hosts_pb2, services_pb2


class SimulatedAgent:
    """Answers with facts that were taken once."""

    def __init__(self, facts: hosts_pb2.HostFacts, number: int) -> None:
        self._facts = hosts_pb2.HostFacts()
        self._facts.CopyFrom(facts)
        self._facts.hostname = f"simulated-{number:03d}"

    async def Handshake(self, request: common_pb2.HandshakeRequest, context: Any) -> common_pb2.HandshakeReply:
        return common_pb2.HandshakeReply(
            protocol=fleet_proto.PROTOCOL,
            minimum_protocol=fleet_proto.MINIMUM_PROTOCOL,
            software_version="simulated",
            machine_id=self._facts.hostname,
        )

    async def GetFacts(self, request: hosts_pb2.GetFactsRequest, context: Any) -> hosts_pb2.HostFacts:
        return self._facts

    async def ListServices(
        self, request: services_pb2.ListServicesRequest, context: Any
    ) -> services_pb2.ListServicesReply:
        return services_pb2.ListServicesReply()


def handlers(agent: SimulatedAgent) -> Any:
    """The simulated calls; gRPC answers UNIMPLEMENTED to all others."""
    return grpc.method_handlers_generic_handler(
        "fleet.v1.Agent",
        {
            "Handshake": grpc.unary_unary_rpc_method_handler(
                agent.Handshake,
                common_pb2.HandshakeRequest.FromString,
                common_pb2.HandshakeReply.SerializeToString,
            ),
            "ListServices": grpc.unary_unary_rpc_method_handler(
                agent.ListServices,
                services_pb2.ListServicesRequest.FromString,
                services_pb2.ListServicesReply.SerializeToString,
            ),
            "GetFacts": grpc.unary_unary_rpc_method_handler(
                agent.GetFacts, hosts_pb2.GetFactsRequest.FromString, hosts_pb2.HostFacts.SerializeToString
            ),
        },
    )


async def real_facts() -> hosts_pb2.HostFacts:
    layout = Layout.from_environment()
    results = await ProbeRunner().run(PROBES, ProbeContext(layout, AgentConfiguration()))
    return facts_message(layout, results)


async def serve(folder: Path, count: int) -> None:
    facts = await real_facts()
    servers = []
    for number in range(count):
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((handlers(SimulatedAgent(facts, number)),))
        server.add_insecure_port(f"unix:{folder / f'{number:03d}.sock'}")
        await server.start()
        servers.append(server)
    print(f"ready {len(facts.SerializeToString())}", flush=True)
    await asyncio.gather(*(server.wait_for_termination() for server in servers))


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
