"""The standard Hugging Face cache: <hf_home>/hub/models--owner--name/{blobs,snapshots/<commit>/<path>,refs/<revision>}.

Everything else on the host that knows the hub (transformers, `hf`, llama-server -hf, LM Studio's importer) sees
our files, and we see theirs. The layout is huggingface_hub's; a test holds this module against the real one.
"""

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from fleet_agent.artifacts.download import incomplete_path
from fleet_agent.artifacts.hashing import expected_hash
from fleet_agent.file_lock import file_lock
from fleet_agent.jobs.errors import READ_ONLY_ERRNOS, SpecProblem, not_writable
from fleet_agent.jobs.model import Artifact, ArtifactFile

COMMIT = re.compile(r"[0-9a-f]{40}")
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


def relative_path(path: str) -> Path:
    """A path within a repository. Raises SpecProblem where it could lead out of it."""
    parts = path.split("/")
    if not path or "\\" in path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise SpecProblem(f"{path!r} is no path within a repository")
    return Path(*parts)


class HubCache:
    """The cache in one Hugging Face home."""

    def __init__(self, hf_home: Path) -> None:
        self.folder = hf_home / "hub"

    def repository_folder(self, repository: str) -> Path:
        """As huggingface_hub.file_download.repo_folder_name names it."""
        return self.folder / "--".join(("models", *repository.split("/")))

    def blob(self, repository: str, file: ArtifactFile) -> Path:
        return self.repository_folder(repository) / "blobs" / expected_hash(file)

    def snapshot(self, repository: str, commit: str) -> Path:
        return self.repository_folder(repository) / "snapshots" / commit

    def present_bytes(self, repository: str, file: ArtifactFile) -> int:
        """Bytes of the file that are on the disk already, whole or in part, verified or not."""
        blob = self.blob(repository, file)
        for path in (blob, incomplete_path(blob)):
            with contextlib.suppress(OSError):
                return path.stat().st_size
        return 0

    def ensure_folders(self, repository: str) -> None:
        """Raises JobProblem "not-writable" where the cache cannot be written."""
        folder = self.repository_folder(repository)
        try:
            for path in (folder / "blobs", folder / "snapshots", folder / "refs", self._locks(repository)):
                path.mkdir(parents=True, exist_ok=True)
                if not os.access(path, os.W_OK | os.X_OK):
                    raise not_writable(path, "permission denied")
        except OSError as error:
            if error.errno in READ_ONLY_ERRNOS:
                raise not_writable(self.folder, error.strerror or str(error)) from error
            raise

    def _locks(self, repository: str) -> Path:
        return self.folder / ".locks" / self.repository_folder(repository).name

    @contextlib.contextmanager
    def lock(self, repository: str, file: ArtifactFile, cancelled: threading.Event) -> Iterator[None]:
        """Held while a blob is fetched. The very lock of huggingface_hub, so that `hf` waits for us and we for it."""
        with file_lock(self._locks(repository) / f"{expected_hash(file)}.lock", cancelled, 0o644):
            yield

    def link(self, repository: str, commit: str, file: ArtifactFile) -> tuple[Path, bool]:
        """Make the blob appear under its name in the snapshot; (path, whether anything changed)."""
        path = self.snapshot(repository, commit) / relative_path(file.path)
        target = os.path.relpath(self.blob(repository, file), path.parent)
        if path.is_symlink() and str(path.readlink()) == target:
            return path, False
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(path)
        return path, True

    def write_reference(self, repository: str, revision: str, commit: str) -> None:
        """Note that `revision` named `commit`, so that offline readers find it under that name."""
        if not revision or revision == commit:
            return
        path = self.repository_folder(repository) / "refs" / relative_path(revision)
        with contextlib.suppress(OSError):
            if path.read_text() == commit:
                return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(commit)
        temporary.replace(path)


def list_artifacts(hf_home: Path) -> tuple[Artifact, ...]:
    """Every commit of every model in the cache, whoever put it there. Files whose blob is missing are left out."""
    found: list[Artifact] = []
    hub = hf_home / "hub"
    if not hub.is_dir():
        return ()
    for folder in sorted(hub.glob("models--*")):
        references = _references(folder / "refs")
        for snapshot in sorted((folder / "snapshots").glob("*")):
            if not snapshot.is_dir():
                continue
            files = sorted(path for path in snapshot.rglob("*") if path.is_file())
            found.append(
                Artifact(
                    repository=folder.name.removeprefix("models--").replace("--", "/"),
                    commit=snapshot.name,
                    revisions=tuple(sorted(name for name, commit in references.items() if commit == snapshot.name)),
                    size_bytes=sum(path.stat().st_size for path in files),
                    files=tuple(path.relative_to(snapshot).as_posix() for path in files),
                )
            )
    return tuple(found)


def _references(folder: Path) -> dict[str, str]:
    names: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path.is_file() and not path.name.startswith("."):
                names[path.relative_to(folder).as_posix()] = path.read_text().strip()
    return names
