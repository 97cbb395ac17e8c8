"""The call that looks for model servers of others."""

from typing import Any

from fleet_agent.discovery.servers import ForeignServer, OwnServers, find_servers
from fleet_agent.services.supervisor import ServiceSupervisor
from fleet_proto.v1 import agent_pb2


class ServerCalls:
    def __init__(self, services: ServiceSupervisor) -> None:
        self._services = services

    async def FindServers(self, request: agent_pb2.FindServersRequest, context: Any) -> agent_pb2.FindServersReply:
        servers = await find_servers(tuple(request.ports), self._own())
        return agent_pb2.FindServersReply(servers=[_message(server) for server in servers])

    def _own(self) -> OwnServers:
        """A stopped service owns nothing: who has its port now is foreign."""
        running = [status.spec for status in self._services.list() if status.process is not None]
        return OwnServers(
            pids=self._services.own_pids(),
            ports=frozenset(spec.port for spec in running if not spec.shared_port_path),
            shared_ports=frozenset(spec.port for spec in running if spec.shared_port_path),
        )


def _message(server: ForeignServer) -> agent_pb2.ForeignServer:
    return agent_pb2.ForeignServer(
        port=server.port,
        backend=server.backend,
        version=server.version,
        models=server.models,
        pid=server.pid,
        user=server.user,
        command=server.command,
        needs_key=server.needs_key,
        address=server.address,
    )
