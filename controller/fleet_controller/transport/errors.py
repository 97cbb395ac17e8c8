"""What can go wrong between the controller and an agent, grouped by what a caller can do about it.

TransportError
├── HostUnreachable      no connection, or it broke: try again, look at the network
├── HostKeyUnknown       nobody has vouched for this host's key: ask a person (`question`)
├── HostKeyMismatch      the key differs from the known one: never offered for acceptance
├── LoginRefused         reached, but not let in
├── NotEnrolled          transport tls: no certificate that holds: `fleet up`, over SSH
├── NoAgent              logged in, but no agent answers: `fleet up`
├── BringUpFailed        the agent could not be installed or started
├── ProtocolSkew         the two sides speak different protocol versions
└── AgentRefused         the agent answered with a problem of its own
"""

from __future__ import annotations

from fleet_controller.domain.base import Problem
from fleet_controller.domain.events import HostKeyQuestion


class TransportError(Exception):
    """An error that a user meets: which host, what happened, what to do next."""

    code = "transport"

    def __init__(self, host: str, message: str, remedy: str = "", code: str = "") -> None:
        super().__init__(f"{host}: {message}")
        self.host = host
        self.problem = Problem(code=code or self.code, message=message, remedy=remedy)


class HostUnreachable(TransportError):
    code = "host-unreachable"


class HostKeyUnknown(TransportError):
    code = "host-key-unknown"

    def __init__(self, question: HostKeyQuestion) -> None:
        self.question = question
        super().__init__(
            question.host,
            f"the {question.key_type} key of {question.address} is not in known_hosts ({question.fingerprint})",
            f"compare the fingerprint with the host's own, then accept it: fleet up {question.host}",
        )


class HostKeyMismatch(TransportError):
    code = "host-key-mismatch"


class LoginRefused(TransportError):
    code = "login-refused"


class NotEnrolled(TransportError):
    code = "not-enrolled"


class NoAgent(TransportError):
    code = "no-agent"


class BringUpFailed(TransportError):
    code = "bring-up-failed"


class ProtocolSkew(TransportError):
    code = "protocol-skew"


class AgentRefused(TransportError):
    """The agent's own words. `status` is the gRPC status name, such as "NOT_FOUND"."""

    code = "agent-refused"

    def __init__(self, host: str, problem: Problem, status: str) -> None:
        super().__init__(host, problem.message, problem.remedy, problem.code)
        self.status = status
