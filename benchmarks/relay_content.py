"""What a lab's hosts relay: files as a hub has them, their manifest, and a cache that has them already."""

import hashlib
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from fleet_agent.artifacts.cache import HubCache, relative_path
from fleet_agent.artifacts.hashing import hash_file, new_hash
from fleet_agent.jobs.model import ArtifactFile
from fleet_agent.relay.manifest import Manifest, piece_bytes_for

REPOSITORY, COMMIT, REVISION = "lab/model", "c" * 40, "main"


def make_content(folder: Path, sizes: Mapping[str, int], seed: int = 1) -> tuple[ArtifactFile, ...]:
    """Random files; large ones with a sha256, those under 1 MB with a git blob id, as a hub has them."""
    source = random.Random(seed)
    files = []
    for name, size in sizes.items():
        path = folder / relative_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            for start in range(0, size, 1 << 20):
                stream.write(source.randbytes(min(1 << 20, size - start)))
        files.append(described(path, name))
    return tuple(files)


def described(path: Path, name: str) -> ArtifactFile:
    size = path.stat().st_size
    kind = ArtifactFile(name, size, sha256="-" if size >= 1_000_000 else "", git_blob_id="-")
    digest = new_hash(kind)
    hash_file(path, digest, lambda _: None)
    if kind.sha256:
        return ArtifactFile(name, size, sha256=digest.hexdigest(), git_blob_id="0" * 40)
    return ArtifactFile(name, size, git_blob_id=digest.hexdigest())


def make_manifest(files: Sequence[ArtifactFile], hosts: int, piece_bytes: int = 0) -> Manifest:
    size = piece_bytes or piece_bytes_for(sum(file.size_bytes for file in files), hosts)
    return Manifest(REPOSITORY, COMMIT, REVISION, tuple(files), size)


def put_into_cache(hf_home: Path, manifest: Manifest, folder: Path) -> None:
    """As a former download left it: blobs by hard link, no snapshot."""
    cache = HubCache(hf_home)
    cache.ensure_folders(manifest.repository)
    for file in manifest.files:
        blob = cache.blob(manifest.repository, file)
        if not blob.exists():
            os.link(folder / relative_path(file.path), blob)


def whole_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
