"""What is known of one host at one moment. It mirrors HostReport of controller.proto."""

from enum import StrEnum

from fleet_controller.domain.base import Frozen, Problem
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.services import ForeignServer, ServiceStatus


class HostConnection(StrEnum):
    UNSPECIFIED = "HOST_CONNECTION_UNSPECIFIED"
    UP = "HOST_CONNECTION_UP"
    NO_AGENT = "HOST_CONNECTION_NO_AGENT"
    UNREACHABLE = "HOST_CONNECTION_UNREACHABLE"
    REFUSED = "HOST_CONNECTION_REFUSED"


class HostReport(Frozen):
    """`facts` and `services` are of an earlier day where the caller asked for the last known ones."""

    host: str
    connection: HostConnection = HostConnection.UNSPECIFIED
    facts: HostFacts | None = None
    problem: Problem | None = None
    agent_version: str | None = None
    seconds: float = 0.0
    services: tuple[ServiceStatus, ...] = ()
    groups: tuple[str, ...] = ()
    address: str = ""
    transport: str = ""


class HostServices(Frozen):
    """The model servers of one host. It mirrors HostServices of controller.proto."""

    host: str
    services: tuple[ServiceStatus, ...] = ()
    problem: Problem | None = None
    reachable: bool = False
    foreign: tuple[ForeignServer, ...] = ()
    address: str = ""
    transport: str = ""


class LogPiece(Frozen):
    """A piece of one service's log, or the problem that ended it."""

    host: str
    service: str
    data: bytes = b""
    problem: Problem | None = None
