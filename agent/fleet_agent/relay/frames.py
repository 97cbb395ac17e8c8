"""The wire: frames of a fixed head and a payload, big-endian.

    kind u8 | 0 u8 | file u16 | piece u32 | length u32

The side that dials says HELLO and is answered WELCOME or BYE. For "pieces" it then sends REQUESTs, answered in their
order by PIECEs, as they become available; for "hashes" it says how many it KNOWs of each file, and gets HASHES as the
head has them (sha256 of the file up to the end of each piece: prefix.py). Who has nothing to say for a while says
ALIVE. REFUSED tells that a piece had a wrong hash.
"""

import json
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from fleet_agent.relay.manifest import DIGEST_BYTES, LARGEST_PIECE_BYTES

PROTOCOL = 2
HEAD = struct.Struct("!BxHII")
HEAD_BYTES = HEAD.size
LONGEST_TEXT_BYTES = 4096
HASHES_AT_ONCE = 1024


class Kind(IntEnum):
    HELLO = 1
    WELCOME = 2
    BYE = 3
    REQUEST = 4
    PIECE = 5
    KNOWN = 6
    HASHES = 7
    ALIVE = 8
    REFUSED = 9


# What each kind may carry at most; a piece's length is also compared with the manifest before a byte is read.
LONGEST_PAYLOAD = {
    Kind.HELLO: LONGEST_TEXT_BYTES,
    Kind.WELCOME: LONGEST_TEXT_BYTES,
    Kind.BYE: LONGEST_TEXT_BYTES,
    Kind.REQUEST: 0,
    Kind.PIECE: LARGEST_PIECE_BYTES,
    Kind.KNOWN: 0,
    Kind.HASHES: HASHES_AT_ONCE * DIGEST_BYTES,
    Kind.ALIVE: 0,
    Kind.REFUSED: 0,
}


class ProtocolError(Exception):
    """The other side does not keep to the protocol: the link is closed."""


class Frame(NamedTuple):
    """The head of a frame; its payload of `length` bytes follows."""

    kind: Kind
    file: int = 0
    piece: int = 0
    length: int = 0

    def pack(self) -> bytes:
        return HEAD.pack(self.kind, self.file, self.piece, self.length)


def unpack(data: bytes | bytearray | memoryview) -> Frame:
    """Raises ProtocolError for a head that no relay sends."""
    kind_number, file, piece, length = HEAD.unpack(data)
    try:
        kind = Kind(kind_number)
    except ValueError:
        raise ProtocolError(f"unknown frame kind {kind_number}") from None
    if length > LONGEST_PAYLOAD[kind]:
        raise ProtocolError(f"{kind.name} with {length} bytes")
    return Frame(kind, file, piece, length)


ALIVE = Frame(Kind.ALIVE).pack()


def text_frame(kind: Kind, value: Any) -> bytes:
    payload = json.dumps(value).encode()[:LONGEST_TEXT_BYTES]
    return Frame(kind, length=len(payload)).pack() + payload


@dataclass(frozen=True)
class Hello:
    """Who dials and what for. manifest: its digest; purpose: "pieces" or "hashes"."""

    node: str
    rollout: str
    manifest: str
    purpose: str

    def pack(self) -> bytes:
        return text_frame(Kind.HELLO, {"protocol": PROTOCOL, **self.__dict__})


def read_hello(payload: bytes | bytearray) -> Hello:
    """Raises ProtocolError."""
    try:
        data = json.loads(payload)
        if data.pop("protocol") != PROTOCOL:
            raise ProtocolError("another version of the relay's protocol")
        hello = Hello(**data)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ProtocolError("a greeting that cannot be read") from None
    if not all(isinstance(value, str) for value in hello.__dict__.values()):
        raise ProtocolError("a greeting that cannot be read")
    return hello
