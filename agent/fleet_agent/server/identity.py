"""The calls about this host's identity for transport `tls`."""

import asyncio
from typing import Any

from fleet_agent.identity.store import IdentityStore
from fleet_agent.problem import ProblemError
from fleet_agent.server.tls import TlsListener
from fleet_proto.v1 import agent_pb2


class IdentityCalls:
    def __init__(self, store: IdentityStore, listener: TlsListener) -> None:
        self._store = store
        self._listener = listener
        self._changing = asyncio.Lock()

    async def NewIdentityKey(
        self, request: agent_pb2.NewIdentityKeyRequest, context: Any
    ) -> agent_pb2.NewIdentityKeyReply:
        key = await asyncio.to_thread(self._store.new_key)
        return agent_pb2.NewIdentityKeyReply(key_id=key.key_id, public_key=key.public_key)

    async def InstallIdentity(
        self, request: agent_pb2.InstallIdentityRequest, context: Any
    ) -> agent_pb2.IdentityStatus:
        if not request.certificate_pem or not request.authority_pem or not request.controller_name:
            raise ProblemError("bad-identity", "the identity is not complete", "", "INVALID_ARGUMENT")
        if not 1024 <= request.port <= 65535:
            raise ProblemError("bad-port", f"port {request.port} is not within 1024-65535", "", "INVALID_ARGUMENT")
        async with self._changing:
            self._store.install(
                request.key_id,
                request.replace,
                certificate_pem=request.certificate_pem,
                authority_pem=request.authority_pem,
                controller_name=request.controller_name,
                bind_address=request.bind_address or "0.0.0.0",
                port=request.port,
            )
            await self._listener.apply()
        return self._status()

    async def RemoveIdentity(self, request: agent_pb2.RemoveIdentityRequest, context: Any) -> agent_pb2.IdentityStatus:
        async with self._changing:
            self._store.remove()
            await self._listener.apply()
        return self._status()

    async def GetIdentity(self, request: agent_pb2.GetIdentityRequest, context: Any) -> agent_pb2.IdentityStatus:
        return self._status()

    def _status(self) -> agent_pb2.IdentityStatus:
        identity = self._listener.identity
        return agent_pb2.IdentityStatus(
            enrolled=identity is not None,
            listening=self._listener.listening,
            port=identity.port if identity else 0,
            authority_sha256=identity.authority_sha256 if identity else "",
            problem=self._listener.problem,
        )
