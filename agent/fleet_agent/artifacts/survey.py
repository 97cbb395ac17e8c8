"""Who needs which model files of the cache, who brought them, and taking them away."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fleet_agent.artifacts.cache import COMMIT, REPOSITORY, HubCache, list_artifacts
from fleet_agent.artifacts.verified import VerifiedNotes
from fleet_agent.jobs.model import Artifact

GONE_PREFIX = ".gone-"


@dataclasses.dataclass(frozen=True)
class ArtifactUses:
    """All texts that the specs of services and of unfinished jobs hold, by name of the service or id of the job."""

    services: dict[str, frozenset[str]]
    jobs: dict[str, frozenset[str]]

    def of(self, repository: str, commit: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(services, jobs) that name this commit's folder, or the repository itself with this commit or with none."""

        def needs(texts: frozenset[str]) -> bool:
            place = f"models--{repository.replace('/', '--')}/snapshots/{commit}"
            if any(place in text for text in texts):
                return True
            return repository in texts and (commit in texts or not any(COMMIT.fullmatch(text) for text in texts))

        return (
            tuple(sorted(name for name, texts in self.services.items() if needs(texts))),
            tuple(sorted(name for name, texts in self.jobs.items() if needs(texts))),
        )


def texts_of(value: Any) -> frozenset[str]:
    """Every string anywhere within a dataclass, or within what JSON holds."""
    return frozenset(_texts(value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        yield from _texts(tuple(value.values()))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _texts(getattr(value, field.name))


def survey_artifacts(hf_home: Path, notes: VerifiedNotes, uses: ArtifactUses) -> tuple[Artifact, ...]:
    """Every commit in the cache, with its users. It looks at each file, so it is for a thread."""
    found = list_artifacts(hf_home)
    cache = HubCache(hf_home)
    blobs = {(one.repository, one.commit): _blobs(cache, one) for one in found}
    surveyed = []
    for one in found:
        mine = blobs[one.repository, one.commit]
        others = [held for key, held in blobs.items() if key[0] == one.repository and key[1] != one.commit]
        own = [blob for blob in mine if not any(blob in held for held in others)]
        services, jobs = uses.of(one.repository, one.commit)
        surveyed.append(
            dataclasses.replace(
                one,
                services=services,
                jobs=jobs,
                brought=bool(mine) and all(notes.was_brought(blob) for blob in mine),
                own_bytes=sum(blob.stat().st_size for blob in own),
            )
        )
    return tuple(surveyed)


def _blobs(cache: HubCache, artifact: Artifact) -> frozenset[Path]:
    snapshot = cache.snapshot(artifact.repository, artifact.commit)
    return frozenset((snapshot / path).resolve() for path in artifact.files)


def set_aside(cache: HubCache, repository: str, commit: str, uses: ArtifactUses) -> Path | None:
    """The commit's folder under another name, so that nobody finds it any more; None where it is needed or not there.

    Called where services and jobs cannot begin in between.
    """
    if not REPOSITORY.fullmatch(repository) or not COMMIT.fullmatch(commit) or any(uses.of(repository, commit)):
        return None
    snapshot = cache.snapshot(repository, commit)
    aside = cache.repository_folder(repository) / f"{GONE_PREFIX}{commit}"
    if not snapshot.is_dir() or snapshot.is_symlink():
        return None
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(exist_ok=True)
    snapshot.rename(aside)
    return aside


def left_aside(cache: HubCache) -> list[Path]:
    """What an agent that was killed in the middle of it has not deleted."""
    return sorted(cache.folder.glob(f"models--*/{GONE_PREFIX}*"))


def delete(aside: Path, notes: VerifiedNotes) -> int:
    """Removes a commit that was set aside, with the blobs that no other commit has; bytes freed."""
    folder = aside.parent
    commit = aside.name.removeprefix(GONE_PREFIX)
    blobs = folder / "blobs"
    # Links lead to ../../blobs/..., which is as deep from where they are now.
    mine = {path.readlink().name for path in aside.rglob("*") if path.is_symlink()}
    kept = {path.readlink().name for path in (folder / "snapshots").rglob("*") if path.is_symlink()}
    freed = 0
    for name in sorted(mine - kept):
        blob = blobs / name
        with contextlib.suppress(OSError):
            freed += blob.stat().st_size if blob.stat().st_nlink == 1 else 0
            notes.forget(blob)
            blob.unlink()
    for reference in (folder / "refs").rglob("*"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if reference.is_file() and reference.read_text().strip() == commit:
                reference.unlink()
    shutil.rmtree(aside, ignore_errors=True)
    _remove_empty(folder, (blobs, folder / "snapshots", folder / "refs", folder))
    return freed


def _remove_empty(folder: Path, places: Iterable[Path]) -> None:
    if any((folder / "snapshots").glob("*")) or any((folder / "blobs").glob("*")):
        return
    for place in places:
        with contextlib.suppress(OSError):
            if place.name == "refs":
                shutil.rmtree(place)
            else:
                place.rmdir()
