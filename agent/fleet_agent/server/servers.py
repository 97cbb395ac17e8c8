"""The call that looks for model servers of others."""

from typing import Any

from fleet_agent.discovery.servers import ForeignServer, find_servers
from fleet_agent.services.supervisor import ServiceSupervisor
from fleet_proto.v1 import agent_pb2


class ServerCalls:
    def __init__(self, services: ServiceSupervisor) -> None:
        self._services = services

    async def FindServers(self, request: agent_pb2.FindServersRequest, context: Any) -> agent_pb2.FindServersReply:
        own = {status.spec.port for status in self._services.list() if status.process is not None}
        servers = await find_servers(tuple(request.ports), own)
        return agent_pb2.FindServersReply(servers=[_message(server) for server in servers])


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
    )
