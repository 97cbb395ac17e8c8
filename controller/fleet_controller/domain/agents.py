"""Who an agent says it is, and who it is to others. Mirrors messages of common.proto and agent.proto."""

from fleet_controller.domain.base import Frozen


class AgentIdentity(Frozen):
    """`machine_id` is stable per machine, not per home folder; `pid` and start time name the agent's process."""

    protocol: int = 0
    minimum_protocol: int = 0
    software_version: str = ""
    machine_id: str = ""
    started_unix_ms: int = 0
    pid: int = 0


class HostIdentity(Frozen):
    """What makes a host serve over TLS: a certificate for the key `key_id`, which the host made, and whom to obey."""

    key_id: str
    certificate_pem: str
    authority_pem: str
    controller_name: str
    bind_address: str = ""
    port: int
    replace: bool = False


class IdentityStatus(Frozen):
    """`authority_sha256` is in hex, of the authority's PEM text; `problem`: why an enrolled host does not listen."""

    enrolled: bool = False
    listening: bool = False
    port: int = 0
    authority_sha256: str = ""
    problem: str = ""
