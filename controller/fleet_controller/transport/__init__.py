"""Reaching agents: links (SSH, this machine), clients and the pool of warm connections."""

from fleet_controller.transport.client import AgentClient
from fleet_controller.transport.errors import (
    AgentRefused,
    BringUpFailed,
    HostKeyMismatch,
    HostKeyUnknown,
    HostUnreachable,
    LoginRefused,
    NoAgent,
    NotEnrolled,
    ProtocolSkew,
    TransportError,
)
from fleet_controller.transport.pool import AgentPool

__all__ = [
    "AgentClient",
    "AgentPool",
    "AgentRefused",
    "BringUpFailed",
    "HostKeyMismatch",
    "HostKeyUnknown",
    "HostUnreachable",
    "LoginRefused",
    "NoAgent",
    "NotEnrolled",
    "ProtocolSkew",
    "TransportError",
]
