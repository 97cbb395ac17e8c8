"""What happened on one host, for people and for machines. They mirror controller.proto."""

from enum import StrEnum

from pydantic import ConfigDict, Field

from fleet_controller.domain.base import Frozen, Problem


class HostKeyQuestion(Frozen):
    """A host key that known_hosts does not know: only a person may take it."""

    host: str
    address: str
    port: int = 22
    key_type: str = ""
    fingerprint: str = ""
    known_hosts_line: str = ""
    known_hosts_path: str = ""


class HostEvent(Frozen):
    """One line of progress of one host. The last one has `done`, and a problem where it failed.

    `result_json` is the wire's `json` (pydantic keeps that name for itself).
    """

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    host: str
    stage: str = ""
    message: str = ""
    done_units: int | None = None
    total_units: int | None = None
    unit: str = ""
    done: bool = False
    changed: bool = False
    problem: Problem | None = None
    host_key: HostKeyQuestion | None = None
    result_json: str = Field(default="", alias="json")


class AgentAction(StrEnum):
    UNSPECIFIED = "AGENT_ACTION_UNSPECIFIED"
    STATUS = "AGENT_ACTION_STATUS"
    UPGRADE = "AGENT_ACTION_UPGRADE"
    RESTART = "AGENT_ACTION_RESTART"
    REMOVE = "AGENT_ACTION_REMOVE"
    REVOKE = "AGENT_ACTION_REVOKE"
