"""What proves a piece: the sha256 of its file from the beginning to the end of that piece.

Pieces are taken in order, so one pass over the bytes serves the check of each piece and that of the whole file: the
last piece's hash is the hub's. Hashes of the pieces by themselves would cost a second pass on every host.
"""

import hashlib
from typing import TYPE_CHECKING

from fleet_agent.artifacts.hashing import Hash, new_hash
from fleet_agent.jobs.model import ArtifactFile

if TYPE_CHECKING:
    from hashlib import _Hash


class PrefixHash:
    """Of the pieces so far; beside it the git blob id, where the hub knows the file by that."""

    def __init__(self, entry: ArtifactFile) -> None:
        self._sha256: _Hash = hashlib.sha256()
        self._git: Hash | None = None if entry.sha256 else new_hash(entry)

    def with_piece(self, data: bytes | memoryview) -> "_Hash":
        """The hash after one more piece, which is not taken yet."""
        found = self._sha256.copy()
        found.update(data)
        return found

    def take(self, found: "_Hash", data: bytes | memoryview) -> None:
        """The piece whose with_piece() that was is right."""
        self._sha256 = found
        if self._git is not None:
            self._git.update(data)

    def add(self, data: bytes | memoryview) -> bytes:
        """One more piece that nobody doubts; its digest."""
        self._sha256.update(data)
        if self._git is not None:
            self._git.update(data)
        return self._sha256.digest()

    def hexdigest(self) -> str:
        """As the hub's hash of the file is written."""
        return (self._git or self._sha256).hexdigest()

    def hub_hash(self) -> Hash:
        """For somebody who goes on hashing by himself."""
        if self._git is None:
            return self._sha256.copy()
        copied: Hash = self._git.copy()  # type: ignore[attr-defined]  # hashlib's, as new_hash made it
        return copied
