"""Who an agent says it is. Mirrors HandshakeReply of common.proto."""

from fleet_controller.domain.base import Frozen


class AgentIdentity(Frozen):
    """`machine_id` is stable per machine, not per home folder; `pid` and start time name the agent's process."""

    protocol: int = 0
    minimum_protocol: int = 0
    software_version: str = ""
    machine_id: str = ""
    started_unix_ms: int = 0
    pid: int = 0
