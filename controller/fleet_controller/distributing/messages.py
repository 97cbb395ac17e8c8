"""What a relay tells and is told, one JSON object a line: the controller's side of fleet_agent/relay/control.py."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from fleet_controller.distributing.model import Frozen


class Peer(Frozen):
    name: str
    address: str
    port: int


class HubSource(Frozen):
    endpoint: str = ""
    token_file: str = ""
    revision: str = ""


class FolderSource(Frozen):
    path: str


class Route(Frozen):
    order: Literal["route"] = "route"
    sequence: int
    head: Peer | None = None
    upstream: Peer | None = None
    hub: HubSource | None = None
    folder: FolderSource | None = None


class Allow(Frozen):
    order: Literal["allow"] = "allow"
    names: tuple[str, ...]


class Limits(Frozen):
    order: Literal["limits"] = "limits"
    upload_bytes_per_second: int = 0
    download_bytes_per_second: int = 0


class Stop(Frozen):
    order: Literal["stop"] = "stop"


Order = Route | Allow | Limits | Stop


class Listening(Frozen):
    event: Literal["listening"] = "listening"
    node: str
    address: str
    port: int
    pid: int


class Progress(Frozen):
    event: Literal["progress"] = "progress"
    verified_bytes: int
    total_bytes: int
    placed_bytes: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    source_bytes: int = 0
    hashes_known: int = 0
    bytes_per_second: float = 0.0
    sequence: int = 0
    is_head: bool = False
    upstream: str = ""
    downstream: tuple[str, ...] = ()
    stalled_seconds: float = 0.0
    starved_seconds: float = 0.0


class FilePlaced(Frozen):
    event: Literal["file-placed"] = "file-placed"
    path: str
    fetched: bool


class Complete(Frozen):
    event: Literal["complete"] = "complete"
    snapshot: str
    fetched_bytes: int


class PeerLost(Frozen):
    event: Literal["peer-lost"] = "peer-lost"
    peer: str
    purpose: str
    reason: str
    detail: str = ""


class CorruptPiece(Frozen):
    event: Literal["corrupt-piece"] = "corrupt-piece"
    peer: str
    path: str
    piece: int


class DamagedPart(Frozen):
    event: Literal["damaged-part"] = "damaged-part"
    path: str
    piece: int


class HashMismatch(Frozen):
    event: Literal["hash-mismatch"] = "hash-mismatch"
    head: str
    path: str


class SourceFailed(Frozen):
    event: Literal["source-failed"] = "source-failed"
    code: str
    message: str
    remedy: str = ""


class PeerRefused(Frozen):
    event: Literal["peer-refused"] = "peer-refused"
    address: str
    name: str
    reason: str


class Note(Frozen):
    event: Literal["note"] = "note"
    message: str


class Failed(Frozen):
    event: Literal["failed"] = "failed"
    code: str
    message: str
    remedy: str = ""


class Ended(Frozen):
    """Made by the controller: the relay's process is no more."""

    event: Literal["ended"] = "ended"


Event = Annotated[
    Listening
    | Progress
    | FilePlaced
    | Complete
    | PeerLost
    | CorruptPiece
    | DamagedPart
    | HashMismatch
    | SourceFailed
    | PeerRefused
    | Note
    | Failed
    | Ended,
    Field(discriminator="event"),
]
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(line: str) -> Event:
    """Raises pydantic.ValidationError for what is none."""
    return _EVENT.validate_json(line)


def order_line(order: Order) -> str:
    return order.model_dump_json(exclude_none=True) + "\n"
