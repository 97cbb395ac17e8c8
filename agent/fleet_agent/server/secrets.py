"""The calls about secrets."""

from typing import Any

from fleet_agent.secrets import SecretStore
from fleet_proto.v1 import agent_pb2


class SecretCalls:
    def __init__(self, store: SecretStore) -> None:
        self._store = store

    async def PutSecret(self, request: agent_pb2.PutSecretRequest, context: Any) -> agent_pb2.PutSecretReply:
        changed = self._store.put(request.name, request.value)
        return agent_pb2.PutSecretReply(path=str(self._store.path(request.name)), changed=changed)
