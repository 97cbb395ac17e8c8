"""What a relay is told and what it tells: one JSON object a line.

Orders go down: {"order": "route" | "limits" | "allow" | "stop", ...}; events come up: {"event": "listening" | ...}.
Each kind is one dataclass below; the key "order" or "event" names it.
"""

import json
from dataclasses import dataclass
from typing import Any

from fleet_agent.jobs.codec import decode, encode
from fleet_agent.jobs.errors import SpecProblem
from fleet_agent.relay.manifest import Manifest, check_manifest

LONGEST_ORDER_BYTES = 1 << 20
LONGEST_NAME = 253


@dataclass(frozen=True)
class TlsFiles:
    """PEM files. The certificate's only DNS name in its subjectAltName is the node's name."""

    ca: str = ""
    certificate: str = ""
    key: str = ""


@dataclass(frozen=True)
class RelaySpec:
    """All that a relay must know at its start. The piece hashes come later, from the rollout's head.

    allowed: the names of all nodes of the rollout. A limit of 0 is none. control_socket: path of the unix socket that
    takes orders, empty for none.
    """

    rollout: str
    node: str
    manifest: Manifest
    hf_home: str
    machine_dir: str
    allowed: tuple[str, ...]
    tls: TlsFiles | None = None
    listen_host: str = "0.0.0.0"
    listen_port: int = 0
    upload_bytes_per_second: int = 0
    download_bytes_per_second: int = 0
    control_socket: str = ""


@dataclass(frozen=True)
class Peer:
    """Where another node listens, and the name its certificate must have."""

    name: str
    address: str
    port: int


@dataclass(frozen=True)
class HubSource:
    """The hub or a mirror of it. endpoint: empty for HF_ENDPOINT or the hub; token_file as in a hub download.

    revision: what the files are asked for by where that is not the manifest's commit (a mirror with its own commits).
    """

    endpoint: str = ""
    token_file: str = ""
    revision: str = ""


@dataclass(frozen=True)
class FolderSource:
    """A folder on this host that holds the files under their names in the repository."""

    path: str


@dataclass(frozen=True)
class Route:
    """Whom this node fetches from. It holds until one with a higher sequence comes.

    head: who announces piece hashes; None makes this node the head, which fetches from hub or folder (with neither it
    only serves what it has). upstream: who sends the pieces; None on the head.
    """

    sequence: int
    head: Peer | None = None
    upstream: Peer | None = None
    hub: HubSource | None = None
    folder: FolderSource | None = None


@dataclass(frozen=True)
class Limits:
    """Bytes a second, from now on; 0 is no limit."""

    upload_bytes_per_second: int = 0
    download_bytes_per_second: int = 0


@dataclass(frozen=True)
class Allow:
    """The names of the rollout's nodes, from now on. Who is no longer among them is cut off."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Stop:
    """End now; what has arrived stays on the disk."""


Order = Route | Limits | Allow | Stop
ORDERS: dict[str, type[Any]] = {"route": Route, "limits": Limits, "allow": Allow, "stop": Stop}


@dataclass(frozen=True)
class Listening:
    """First of all events: the data port is open."""

    node: str
    address: str
    port: int
    pid: int


@dataclass(frozen=True)
class Progress:
    """Twice a second. All byte counts are of this process's life, except verified_bytes, which is the state on disk.

    verified_bytes: whole pieces that are right, and files that were there before; received_bytes: from other nodes,
    unfinished pieces included; source_bytes: from the hub or folder; stalled_seconds: since the last byte came in, 0
    when nothing is missing; starved_seconds: how long, of the last two seconds, a thread of this process waited for a
    processor.
    """

    verified_bytes: int
    total_bytes: int
    placed_bytes: int
    received_bytes: int
    sent_bytes: int
    source_bytes: int
    hashes_known: int
    bytes_per_second: float
    sequence: int
    is_head: bool
    upstream: str
    downstream: tuple[str, ...]
    stalled_seconds: float
    starved_seconds: float


@dataclass(frozen=True)
class FilePlaced:
    """A file is in the cache, its hash is the hub's. fetched: whether it had to be moved at all."""

    path: str
    fetched: bool


@dataclass(frozen=True)
class Complete:
    """All files are in the cache. The node goes on serving until it is stopped."""

    snapshot: str
    fetched_bytes: int


@dataclass(frozen=True)
class PeerLost:
    """A link that this node opened is gone or never came to be. purpose: "pieces" or "hashes".

    reason: "closed", "silent", "refused", "unreachable", "protocol", "certificate"; detail is for people.
    """

    peer: str
    purpose: str
    reason: str
    detail: str


@dataclass(frozen=True)
class CorruptPiece:
    """`peer` sent a piece with another hash than the head's. It was not stored."""

    peer: str
    path: str
    piece: int


@dataclass(frozen=True)
class DamagedPart:
    """Pieces on this node's own disk were no longer right; from `piece` on they are fetched again."""

    path: str
    piece: int


@dataclass(frozen=True)
class HashMismatch:
    """All pieces are those that `head` announced, and still the file is not the hub's. It starts again at zero."""

    head: str
    path: str


@dataclass(frozen=True)
class SourceFailed:
    """The head cannot go on fetching: another node must be the head, or another source be named."""

    code: str
    message: str
    remedy: str


@dataclass(frozen=True)
class PeerRefused:
    """Somebody on the data port was turned away (at most a few a second are told)."""

    address: str
    name: str
    reason: str


@dataclass(frozen=True)
class Note:
    """Something that is worth a line in the log."""

    message: str


@dataclass(frozen=True)
class Failed:
    """The last event of a relay that cannot go on: full or read-only disk, bad spec."""

    code: str
    message: str
    remedy: str


Event = (
    Listening | Progress | FilePlaced | Complete | PeerLost | CorruptPiece | DamagedPart | HashMismatch | SourceFailed
    | PeerRefused | Note | Failed
)  # fmt: skip
EVENTS: dict[str, type[Any]] = {
    "listening": Listening,
    "progress": Progress,
    "file-placed": FilePlaced,
    "complete": Complete,
    "peer-lost": PeerLost,
    "corrupt-piece": CorruptPiece,
    "damaged-part": DamagedPart,
    "hash-mismatch": HashMismatch,
    "source-failed": SourceFailed,
    "peer-refused": PeerRefused,
    "note": Note,
    "failed": Failed,
}
_ORDER_NAMES = {kind: name for name, kind in ORDERS.items()}
_EVENT_NAMES = {kind: name for name, kind in EVENTS.items()}


def order_line(order: Order) -> str:
    return json.dumps({"order": _ORDER_NAMES[type(order)], **encode(order)}, separators=(",", ":")) + "\n"


def event_line(event: Event) -> str:
    return json.dumps({"event": _EVENT_NAMES[type(event)], **encode(event)}, separators=(",", ":")) + "\n"


def parse_order(line: str) -> Order:
    """Raises SpecProblem for what is no order."""
    order: Order = _parse(line, "order", ORDERS)
    if isinstance(order, Route):
        _check_route(order)
    return order


def parse_event(line: str) -> Event:
    """Raises SpecProblem for what is no event."""
    event: Event = _parse(line, "event", EVENTS)
    return event


def _parse(line: str, key: str, kinds: dict[str, type[Any]]) -> Any:
    if len(line) > LONGEST_ORDER_BYTES:
        raise SpecProblem(f"an {key} of {len(line)} bytes is too long")
    try:
        data = json.loads(line)
        return decode(kinds[data[key]], data)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SpecProblem(f"not an {key}: {line.strip()[:120]!r} ({error})") from None


def read_spec(text: str) -> RelaySpec:
    """Raises SpecProblem for a spec that breaks a rule."""
    try:
        spec = decode(RelaySpec, json.loads(text))
    except (ValueError, TypeError) as error:
        raise SpecProblem(f"the relay's spec cannot be read: {error}") from None
    check_spec(spec)
    return spec


def check_spec(spec: RelaySpec) -> None:
    """Raises SpecProblem. Pure: files that are named are not looked at."""
    check_manifest(spec.manifest)
    for name in (spec.node, *spec.allowed):
        check_name(name)
    if spec.node not in spec.allowed:
        raise SpecProblem(f"{spec.node!r} is not among the rollout's own nodes")
    if not spec.rollout:
        raise SpecProblem("a relay belongs to a rollout")
    if not spec.hf_home.startswith("/") or not spec.machine_dir.startswith("/"):
        raise SpecProblem("hf_home and machine_dir are absolute paths")
    if not 0 <= spec.listen_port < 1 << 16:
        raise SpecProblem(f"{spec.listen_port} is no port")
    if min(spec.upload_bytes_per_second, spec.download_bytes_per_second) < 0:
        raise SpecProblem("a limit is negative")
    if spec.tls is not None and not all(path.startswith("/") for path in (spec.tls.ca, spec.tls.certificate)):
        raise SpecProblem("certificates are named by absolute paths")


def check_name(name: str) -> None:
    """A node's name is also a DNS name in its certificate, so no wildcard and no odd characters."""
    if not 0 < len(name) <= LONGEST_NAME or not all(c.isascii() and (c.isalnum() or c in "._-") for c in name):
        raise SpecProblem(f"{name[:80]!r} is no name of a node")


def _check_route(route: Route) -> None:
    for peer in (route.head, route.upstream):
        if peer is not None:
            check_name(peer.name)
            if not 0 < peer.port < 1 << 16 or not peer.address:
                raise SpecProblem(f"{peer.name} has no address to dial")
    if route.head is None and route.upstream is not None:
        raise SpecProblem("the head has no upstream")
    if route.hub is not None and route.folder is not None:
        raise SpecProblem("a head has one source")
    if route.folder is not None and not route.folder.path.startswith("/"):
        raise SpecProblem("a folder to take files from is an absolute path")
