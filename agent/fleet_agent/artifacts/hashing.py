"""The two hashes a model hub publishes: sha256 for LFS files, git's blob id for the rest."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from fleet_agent.jobs.errors import JobProblem
from fleet_agent.jobs.model import ArtifactFile

BLOCK_BYTES = 1 << 20


class Hash(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


def expected_hash(file: ArtifactFile) -> str:
    """The hash the content must have; it also names the blob in the cache. Raises JobProblem where there is none."""
    expected = file.sha256 or file.git_blob_id
    if not expected:
        raise JobProblem(
            "no-hash",
            f"{file.path} comes without a hash, so it cannot be verified",
            "the hub or mirror publishes none for it: use another endpoint, or a local path with its sha256",
        )
    return expected


def new_hash(file: ArtifactFile) -> Hash:
    """An empty hash of the kind that the file is checked by. git: sha1 of "blob <size>\\0" and the content."""
    if file.sha256:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)


def hash_file(path: Path, into: Hash, on_bytes: Callable[[int], None]) -> int:
    """Feed a file's content into a hash; its size. on_bytes(n) is called for each block and may raise."""
    size = 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            into.update(block)
            size += len(block)
            on_bytes(len(block))
    return size
