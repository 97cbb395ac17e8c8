"""What hosts.yaml may hold: the models that check the file, and from which its JSON schema is made."""

import re
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from fleet_inventory.allowlists import KEY_PATTERN, TOOLS, is_allowed, refusal
from fleet_inventory.base import Frozen
from fleet_inventory.secret_reference import PATTERN as REFERENCE_PATTERN
from fleet_inventory.secret_reference import parse_reference
from fleet_inventory.sizes import parse_bytes

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
# One hop of a jump: [user@]host[:port]; nothing that ssh could read as an option or a shell as more than a word.
_ADDRESS = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._+-]*|\[?[0-9A-Fa-f]*:[0-9A-Fa-f:.]+(?:%[A-Za-z0-9]+)?\]?)\Z")
_HOP = re.compile(
    r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*@)?(?:[A-Za-z0-9_][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?\Z"
)
_PORTS = re.compile(r"\s*([0-9]+)\s*-\s*([0-9]+)\s*\Z")


class Transport(StrEnum):
    """How the controller reaches the agent of a host."""

    SSH = "ssh"
    TLS = "tls"
    LOCAL = "local"


class PortRange(Frozen):
    """TCP ports that services may take, both ends included."""

    first: int
    last: int


class JsonExtra:
    """Adds to the JSON schema what pydantic cannot know; `alternatives` are further accepted forms."""

    def __init__(self, *alternatives: JsonSchemaValue, **more: Any) -> None:
        self.alternatives, self.more = alternatives, more

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        made = {**handler(schema), **self.more}
        return {"anyOf": [made, *self.alternatives]} if self.alternatives else made


def _name(value: str) -> str:
    if not re.match(NAME_PATTERN, value):
        raise ValueError("a name has letters, digits, '.', '_' and '-', and starts with a letter or digit")
    if value == "all":
        raise ValueError("'all' means every host in a pattern, so nothing else can have that name")
    return value


def is_address(value: str) -> bool:
    """Whether `value` can be an address in hosts.yaml: a host name, an IP address or an ssh_config alias."""
    return _ADDRESS.match(value) is not None


def _address(value: str) -> str:
    if "@" in value:
        raise ValueError(f"has a user in it; write 'user: {value.split('@', 1)[0]}' on a line of its own")
    if re.fullmatch(r"[A-Za-z0-9._-]+:[0-9]+", value):
        raise ValueError(f"has a port in it; write 'port: {value.rsplit(':', 1)[1]}' on a line of its own")
    if not is_address(value):
        raise ValueError(f"'{value}' is no host name, IP address or ssh_config alias")
    return value


def _user(value: str) -> str:
    if not re.match(r"[A-Za-z0-9_][A-Za-z0-9._$@\\-]*\Z", value):
        raise ValueError(f"'{value}' is no user name")
    return value


def _jump(value: str) -> str:
    hops = [hop.strip() for hop in value.split(",")]
    if not all(_HOP.match(hop) for hop in hops):
        raise ValueError("must read [user@]host[:port], several separated by commas, as in ssh -J")
    return ",".join(hops)


def _absolute(value: str) -> str:
    if not value.startswith("/") or "\0" in value or "\n" in value:
        raise ValueError(f"must be an absolute path on the host (starting with '/'), not '{value}'")
    return value.rstrip("/") or "/"


def _environment(value: dict[str, str]) -> dict[str, str]:
    for key, text in value.items():
        if "\0" in text or "\n" in text:
            raise ValueError(f"{key} has a line break in its value")
    return value


def _reference(value: str) -> str:
    return str(parse_reference(value))


def _environment_key(value: str) -> str:
    if not is_allowed(value):
        raise ValueError(refusal(value))
    return value


def _tool(value: str) -> str:
    if value not in TOOLS:
        raise ValueError(f"the agent runs no such tool; it knows: {', '.join(TOOLS)}")
    return value


def _ports(value: object) -> object:
    match = _PORTS.match(value) if isinstance(value, str) else None
    ends = match.groups() if match else value if isinstance(value, list | tuple) and len(value) == 2 else None
    if ends is None or not all(isinstance(end, str) or type(end) is int for end in ends):
        raise ValueError(f"must be a range of ports like '8100-8199', not {value!r}")
    first, last = int(ends[0]), int(ends[1])
    if not 1024 <= first <= last <= 65535:
        raise ValueError(f"must lie within 1024-65535, the lower end first, not {first}-{last}")
    return PortRange(first=first, last=last)


def _members(value: object) -> object:
    return {"hosts": value} if isinstance(value, list) else value


def _one_or_many(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


Name = Annotated[str, AfterValidator(_name)]
Text = Annotated[str, WithJsonSchema({"type": ["string", "number", "boolean"]})]  # kept exactly as written
AbsolutePath = Annotated[str, AfterValidator(_absolute), JsonExtra(pattern="^/")]
PortNumber = Annotated[int, Field(ge=1, le=65535, strict=True)]
Reference = Annotated[str, AfterValidator(_reference), JsonExtra(pattern=REFERENCE_PATTERN)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_one_or_many), JsonExtra({"type": "string"})]
Size = Annotated[int, BeforeValidator(parse_bytes), WithJsonSchema({"type": ["integer", "number", "string"]})]
Ports = Annotated[
    PortRange,
    BeforeValidator(_ports),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": r"^\s*[0-9]+\s*-\s*[0-9]+\s*$"},
                {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
            ]
        }
    ),
]
Environment = Annotated[
    dict[Annotated[str, AfterValidator(_environment_key)], Text],
    AfterValidator(_environment),
    JsonExtra(propertyNames={"pattern": KEY_PATTERN}),
]
Labels = Annotated[dict[Name, Text], JsonExtra(propertyNames={"pattern": NAME_PATTERN})]
Tools = Annotated[
    dict[Annotated[str, AfterValidator(_tool)], AbsolutePath], JsonExtra(propertyNames={"enum": list(TOOLS)})
]


class LimitsSettings(Frozen):
    """What services on a host may take."""

    memory_reserve: Size | None = Field(None, description="Memory of the device that fleet leaves free, like '2 GB'")
    max_services: Annotated[int, Field(ge=1, strict=True)] | None = Field(
        None, description="How many model servers may run at the same time"
    )
    ports: Ports | None = Field(None, description="Ports that model servers may take, like '8100-8199'")


class Settings(Frozen):
    """What may be said for all hosts, for a group, or for one host."""

    user: Annotated[str, AfterValidator(_user)] | None = Field(
        None, description="Login name; without it, ssh_config decides"
    )
    port: PortNumber | None = Field(None, description="SSH port; without it, ssh_config decides")
    jump: Annotated[str, AfterValidator(_jump)] | None = Field(
        None, description="Jump host as in ssh -J: [user@]host[:port], several separated by commas"
    )
    transport: Transport | None = Field(None, description="How to reach the agent; ssh unless said otherwise")
    tls_port: Annotated[int, Field(ge=1024, le=65535, strict=True)] | None = Field(
        None, description="Port of the agent for transport tls; 7443 unless said otherwise"
    )
    labels: Labels | None = Field(None, description="Free words about a host; patterns select by key=value")
    environment: Environment | None = Field(None, description="Variables for installs, downloads and model servers")
    model_dir: AbsolutePath | None = Field(None, description="Folder with model files that are already on the host")
    limits: LimitsSettings | None = Field(None, description="What services on a host may take")
    agent_root: AbsolutePath | None = Field(None, description="Where the agent keeps its files; a local disk is best")
    python: AbsolutePath | None = Field(None, description="The Python to install the agent with")
    hub_token: Reference | None = Field(
        None,
        description="Where the model hub's token lies for the controller: env:NAME, or file:/path of mode 0600",
    )
    tools: Tools | None = Field(None, description="Where a tool lies that is not on the PATH of the host")


class GroupSettings(Settings):
    """A group: who is in it, and what holds for all of them."""

    hosts: Names | None = Field(None, description="Members; a host may also name its groups itself")


class HostSettings(Settings):
    """One host."""

    address: Annotated[str, AfterValidator(_address)] | None = Field(
        None, description="Host name, IP address or ssh_config alias; the host's name unless said otherwise"
    )
    groups: Names | None = Field(None, description="Groups that the host is in; patterns select them by @group")


GroupEntry = Annotated[
    GroupSettings, BeforeValidator(_members), JsonExtra({"type": "array", "items": {"type": "string"}})
]
_NAMED = JsonExtra(propertyNames={"pattern": NAME_PATTERN, "not": {"const": "all"}})


class HostsFile(Frozen):
    """The machines that fleet manages."""

    defaults: Settings | None = Field(None, description="What holds for every host that does not say otherwise")
    groups: Annotated[dict[Name, GroupEntry | None], _NAMED] | None = Field(None, description="Groups of hosts")
    hosts: Annotated[dict[Name, HostSettings | None], _NAMED] | None = Field(None, description="The hosts by name")
