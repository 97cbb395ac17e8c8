"""GGUF headers: key/values and tensor infos, without the weights. Format: the GGUF specification of the ggml project.

A header ends before the tensors' data; with a large vocabulary it is some 10 MB, so it is read from a hub piece by
piece and parsed again until it is whole.
"""

import math
import re
import struct
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from fleet_controller.hub.errors import GgufError, HubUnreachableError, RepositoryGatedError

MAGIC = b"GGUF"
SUPPORTED_VERSIONS = (2, 3)
# Value types of the specification: struct codes by type number; 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Bytes and values of one block by tensor type number (ggml.h, ggml-common.h).
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip
_ARRAY_KEPT = 4096  # vocabularies and merges are skipped: nothing here needs them
_FIRST_PIECE_BYTES = 4 << 20
_LARGEST_HEADER_BYTES = 256 << 20
_LARGEST_COUNT = 1 << 24
_TIMEOUT_SECONDS = 20.0

Value = int | float | bool | str | list[int | float | bool | str] | None


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: its dimensions, the innermost first, and its bytes, None with a type we do not know."""

    name: str
    dimensions: tuple[int, ...]
    size_bytes: int | None


@dataclass(frozen=True)
class GgufHeader:
    """What a header says. Long arrays (vocabularies) are None, but `array_lengths` has how long they are.

    `tensor_bytes` is None with a type we do not know. The table of tensors begins at `tensors_at`.
    """

    version: int
    values: dict[str, Value]
    tensors: tuple[GgufTensor, ...]
    array_lengths: dict[str, int]
    header_bytes: int
    tensors_at: int = 0

    @property
    def tensor_count(self) -> int:
        return len(self.tensors)

    @property
    def parameters(self) -> int:
        return sum(math.prod(tensor.dimensions) for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int | None:
        sizes = [tensor.size_bytes for tensor in self.tensors]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", ""))

    def integer(self, key: str, default: int = 0) -> int:
        """The value of `<architecture>.<key>`; of an array the largest, since the rest of them are zeros or equal."""
        value = self.values.get(f"{self.architecture}.{key}")
        if isinstance(value, list):
            numbers = [int(item) for item in value if isinstance(item, int)]
            return max(numbers, default=default)
        return int(value) if isinstance(value, int | float) else default


class _NeedMoreError(Exception):
    """The bytes end before the header does."""


@dataclass
class _Reader:
    data: bytes
    position: int = 0
    last_array_length: int = 0
    _formats: dict[str, struct.Struct] = field(default_factory=dict)

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self.data):
            raise _NeedMoreError
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def scalar(self, code: str) -> int | float | bool:
        form = self._formats.setdefault(code, struct.Struct("<" + code))
        value: int | float | bool = form.unpack(self.take(form.size))[0]
        return value

    def count(self) -> int:
        value = int(self.scalar("Q"))
        if value > 1 << 40:
            raise GgufError(f"not a GGUF file: a length of {value} in its header", "fetch the file again")
        return value

    def string(self) -> str:
        return self.take(self.count()).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Value:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise GgufError(f"not a GGUF file: value type {kind} in its header", "fetch the file again")
        return self.scalar(_SCALARS[kind])

    def _array(self) -> Value:
        kind, count = int(self.scalar("I")), self.count()
        self.last_array_length = count
        if kind in _SCALARS and count > _ARRAY_KEPT:
            self.take(struct.calcsize("<" + _SCALARS[kind]) * count)
            return None
        kept: list[int | float | bool | str] = []
        for _ in range(count):
            item = self.value(kind)
            if count <= _ARRAY_KEPT and isinstance(item, int | float | str):
                kept.append(item)
        return kept if count <= _ARRAY_KEPT else None


def parse_header(data: bytes) -> GgufHeader:
    """The header at the start of `data`. Raises GgufError for anything else, and where `data` ends too early."""
    try:
        return _parse(_Reader(data))
    except _NeedMoreError as error:
        raise GgufError(
            f"the GGUF file is cut off: its header goes on after {len(data)} bytes", "fetch the file again"
        ) from error


def _parse(reader: _Reader) -> GgufHeader:
    magic = reader.take(4)
    if magic != MAGIC:
        raise GgufError(f"not a GGUF file: it starts with {magic!r}", "check the path; fetch the file again")
    version = int(reader.scalar("I"))
    if version not in SUPPORTED_VERSIONS:
        raise GgufError(f"GGUF version {version} is not supported", "convert the model to GGUF version 3")
    tensor_count, value_count = reader.count(), reader.count()
    if max(tensor_count, value_count) > _LARGEST_COUNT:
        raise GgufError("not a GGUF file: its header has impossible counts", "fetch the file again")
    values: dict[str, Value] = {}
    lengths: dict[str, int] = {}
    for _ in range(value_count):
        key = reader.string()
        kind = int(reader.scalar("I"))
        values[key] = reader.value(kind)
        if kind == _ARRAY:
            lengths[key] = reader.last_array_length
    tensors_at = reader.position
    tensors = tuple(_tensor(reader) for _ in range(tensor_count))
    return GgufHeader(version, values, tensors, lengths, reader.position, tensors_at)


def parse_tensors(data: bytes, count: int) -> tuple[GgufTensor, ...]:
    """A table of `count` tensors at the start of `data`. Raises GgufError where it is none."""
    reader = _Reader(data)
    try:
        return tuple(_tensor(reader) for _ in range(count))
    except _NeedMoreError as error:
        raise GgufError("the table of tensors is cut off", "fetch the file again") from error


def _tensor(reader: _Reader) -> GgufTensor:
    name = reader.string()
    dimensions = tuple(reader.count() for _ in range(int(reader.scalar("I"))))
    kind = int(reader.scalar("I"))
    reader.take(8)  # the offset of its data
    if kind not in _BLOCKS:
        return GgufTensor(name, dimensions, None)
    values, size = _BLOCKS[kind]
    return GgufTensor(name, dimensions, math.prod(dimensions) // values * size)


def read_file(path: Path) -> GgufHeader:
    """The header of a local file, with a check that all tensor data is there.

    Raises GgufError, also for a truncated file, and OSError where the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            header = _read_growing(file, size)
        except GgufError as error:
            raise GgufError(f"{path}: {error.message}", error.remedy) from error
    if header.tensor_bytes is not None and size < header.header_bytes + header.tensor_bytes:
        missing = header.header_bytes + header.tensor_bytes - size
        raise GgufError(f"{path} is cut off: at least {missing} bytes of its tensors are missing", "fetch it again")
    return header


def _read_growing(file: BinaryIO, size: int) -> GgufHeader:
    data = b""
    while True:
        data += file.read(max(_FIRST_PIECE_BYTES, len(data)))
        try:
            return _parse(_Reader(data))
        except _NeedMoreError as error:
            if len(data) >= min(size, _LARGEST_HEADER_BYTES):
                raise GgufError(
                    f"the GGUF file is cut off: its header goes on after {len(data)} bytes", "fetch the file again"
                ) from error


def read_url(url: str, token: str | None = None, first_piece_bytes: int = _FIRST_PIECE_BYTES) -> GgufHeader:
    """The header of a file on a hub, by HTTP Range in pieces that double (blocking).

    Raises GgufError, HubUnreachableError, RepositoryGatedError.
    """
    data = b""
    while True:
        wanted = max(first_piece_bytes, len(data))
        piece = fetch(url, token, len(data), wanted)
        data += piece
        try:
            return _parse(_Reader(data))
        except _NeedMoreError as error:
            if len(piece) < wanted or len(data) >= _LARGEST_HEADER_BYTES:
                raise GgufError(f"{url} is cut off after {len(data)} bytes", "choose another file") from error


def fetch(url: str, token: str | None, start: int, size: int) -> bytes:
    """[start, start + size) of a file on a hub, less where it ends before (blocking).

    Raises HubUnreachableError, RepositoryGatedError.
    """
    headers = {"Range": f"bytes={start}-{start + size - 1}"}
    request = urllib.request.Request(url, headers=headers)
    if token:
        # Not sent on to the storage that the hub redirects to: it signs its addresses itself.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
            given = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range") or "")
            answer.read(start - int(given[1] if given else 0))  # a server that ignores Range starts at the beginning
            body: bytes = answer.read(size)
            return body
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return b""
        if error.code in (401, 403):
            remedy = "accept its terms on the hub, then set hub_token in hosts.yaml: env:HF_TOKEN or file:/path"
            raise RepositoryGatedError(
                f"{url} answered {error.code}: it wants a token that may read it", remedy
            ) from error
        raise HubUnreachableError(f"{url} answered {error.code} {error.reason}", "try again later") from error
    except OSError as error:
        raise HubUnreachableError(f"{url} cannot be read: {error}", "check the network, or set HF_ENDPOINT") from error


def whole(headers: Sequence[GgufHeader]) -> GgufHeader:
    """The header of a split model: the first part's values, the tensors of all."""
    return replace(headers[0], tensors=tuple(tensor for header in headers for tensor in header.tensors))
