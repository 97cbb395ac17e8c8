"""Hashes files of the Hugging Face cache again and compares with the names of their blobs.

Result: {"files": n, "bytes": n, "damaged": [{"repository", "commit", "path"}], "unnamed": n}; unnamed are files whose
blob's name is no hash, which nobody can verify.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet_agent.artifacts.cache import COMMIT, HASH, REPOSITORY, HubCache, list_artifacts
from fleet_agent.artifacts.hashing import Hash, hash_file
from fleet_agent.artifacts.verified import VerifiedNotes
from fleet_agent.jobs.errors import SpecProblem, Stopped
from fleet_agent.jobs.model import VerifyArtifactsStep
from fleet_agent.steps.context import StepContext


def check(step: VerifyArtifactsStep) -> None:
    if step.repository and not REPOSITORY.fullmatch(step.repository):
        raise SpecProblem(f"{step.repository!r} is no hub repository", 'give it as "owner/name"')
    if step.commit and not (step.repository and COMMIT.fullmatch(step.commit)):
        raise SpecProblem(f"{step.commit!r} is no full commit id of a repository")


async def run(step: VerifyArtifactsStep, context: StepContext) -> dict[str, Any]:
    return await context.in_thread(_verify, step, context)


@dataclass(frozen=True)
class _File:
    repository: str
    commit: str
    path: str
    blob: Path


def _verify(step: VerifyArtifactsStep, context: StepContext) -> dict[str, Any]:
    files = list(_files(step, context.layout.hf_home))
    sizes: dict[Path, int] = {}
    for file in files:
        with contextlib.suppress(OSError):
            sizes[file.blob] = file.blob.stat().st_size
    notes = VerifiedNotes(context.layout.machine_dir)
    verdicts: dict[Path, bool | None] = {}
    done, total = 0, sum(sizes.values())

    def on_bytes(count: int) -> None:
        nonlocal done
        if context.cancelled.is_set():
            raise Stopped
        done += count
        context.progress(done, total, "bytes", file.path)

    for file in files:
        if file.blob not in verdicts:
            verdicts[file.blob] = _is_right(file.blob, on_bytes)
            _note(notes, file.blob, verdicts[file.blob])
    damaged = [file for file in files if verdicts[file.blob] is False]
    for file in damaged:
        context.log(f"damaged: {file.repository} {file.path} (its content is not what its name {file.blob.name} says)")
    return {
        "files": len(files),
        "bytes": total,
        "damaged": [{"repository": one.repository, "commit": one.commit, "path": one.path} for one in damaged],
        "unnamed": sum(verdicts[file.blob] is None for file in files),
    }


def _files(step: VerifyArtifactsStep, hf_home: Path) -> Iterator[_File]:
    cache = HubCache(hf_home)
    for artifact in list_artifacts(hf_home):
        if step.repository in ("", artifact.repository) and step.commit in ("", artifact.commit):
            snapshot = cache.snapshot(artifact.repository, artifact.commit)
            for path in artifact.files:
                yield _File(artifact.repository, artifact.commit, path, (snapshot / path).resolve())


def _is_right(blob: Path, on_bytes: Any) -> bool | None:
    """None where its name is no hash. A file that cannot be read is not right."""
    if not HASH.fullmatch(blob.name):
        return None
    try:
        found: Hash
        if len(blob.name) == hashlib.sha256().digest_size * 2:
            found = hashlib.sha256()
        else:
            found = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
        hash_file(blob, found, on_bytes)
    except OSError:
        return False
    return found.hexdigest() == blob.name


def _note(notes: VerifiedNotes, blob: Path, right: bool | None) -> None:
    """A damaged file must not be taken for verified on account of an older note."""
    with contextlib.suppress(OSError):
        if right:
            notes.write(blob)
        else:
            notes.forget(blob)
