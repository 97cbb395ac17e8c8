"""Unpacking archives from elsewhere: no member leaves the folder, neither by its name nor through a link.

Files and folders are written first and links made last, so that nothing is ever written through a link of the
archive; then every link must lead to a place inside.
"""

import shutil
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from fleet_agent.jobs.errors import JobProblem, Stopped

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Member:
    """One entry: exactly one of folder, content and link."""

    name: str
    mode: int
    folder: bool = False
    content: IO[bytes] | None = None
    symlink: str | None = None
    hardlink: str | None = None


def unpack(archive: Path, into: Path, strip_components: int, cancelled: threading.Event) -> int:
    """Unpack a tar (any compression of the standard library) or zip into the folder; the number of files.

    Raises JobProblem "bad-archive" or "unsafe-archive".
    """
    into.mkdir(parents=True)
    writer = _Writer(into.resolve(), strip_components)
    try:
        for member in _members(archive):
            if cancelled.is_set():
                raise Stopped
            writer.take(member)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise JobProblem("bad-archive", f"{archive.name} cannot be unpacked: {error}", "fetch it again") from error
    writer.make_links()
    if writer.files == 0:
        raise JobProblem("bad-archive", f"{archive.name} holds no file", "check strip_components and the URL")
    return writer.files


def _members(archive: Path) -> Iterator[Member]:
    if zipfile.is_zipfile(archive):
        return _zip_members(archive)
    return _tar_members(archive)


def _tar_members(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive) as tar:
        for entry in tar:
            if entry.isdir():
                yield Member(entry.name, 0o755, folder=True)
            elif entry.isreg():
                yield Member(entry.name, entry.mode, content=tar.extractfile(entry))
            elif entry.issym():
                yield Member(entry.name, 0, symlink=entry.linkname)
            elif entry.islnk():
                yield Member(entry.name, 0, hardlink=entry.linkname)
            else:
                raise _unsafe(entry.name, "it is a device or a pipe")


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as bundle:
        for entry in bundle.infolist():
            mode = entry.external_attr >> 16
            if entry.is_dir():
                yield Member(entry.filename, 0o755, folder=True)
            elif stat.S_ISLNK(mode):
                yield Member(entry.filename, 0, symlink=bundle.read(entry).decode())
            else:
                with bundle.open(entry) as content:
                    yield Member(entry.filename, mode & 0o777 or 0o644, content=content)


class _Writer:
    def __init__(self, root: Path, strip_components: int) -> None:
        self._root = root
        self._strip = strip_components
        self._links: list[tuple[Path, Member]] = []
        self.files = 0

    def take(self, member: Member) -> None:
        target = self._target(member.name)
        if target is None:
            return
        if member.folder:
            target.mkdir(parents=True, exist_ok=True)
        elif member.content is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            with target.open("xb") as stream:
                shutil.copyfileobj(member.content, stream, BLOCK_BYTES)
            target.chmod(0o755 if member.mode & 0o100 else 0o644)
            self.files += 1
        else:
            self._links.append((target, member))

    def make_links(self) -> None:
        """Hard links become copies; symbolic links are made, then each must lead inside."""
        for target, member in self._links:
            if member.hardlink is not None:
                self._copy(target, member)
        made = [(target, member) for target, member in self._links if member.symlink is not None]
        for target, member in made:
            self._check_parents(target, member.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.symlink_to(member.symlink or "")
        for target, member in made:
            if PurePosixPath(member.symlink or "").is_absolute() or not _inside(target, self._root):
                target.unlink()
                raise _unsafe(member.name, f"it links to {member.symlink}")

    def _copy(self, target: Path, member: Member) -> None:
        source = self._target(member.hardlink or "")
        if source is None or not source.is_file():
            raise _unsafe(member.name, f"it is a hard link to {member.hardlink}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
        self.files += 1

    def _target(self, name: str) -> Path | None:
        """Where the member goes; None where stripping leaves nothing of it."""
        if "\0" in name or "\\" in name or name.startswith("/"):
            raise _unsafe(name, "its path is absolute or odd")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise _unsafe(name, "its path leads out")
        kept = parts[self._strip :]
        return self._root.joinpath(*kept) if kept else None

    def _check_parents(self, target: Path, name: str) -> None:
        if not target.parent.resolve().is_relative_to(self._root):
            raise _unsafe(name, "it lies behind a link that leads out")


def _inside(link: Path, root: Path) -> bool:
    try:
        return link.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a loop of links
        return False


def _unsafe(name: str, why: str) -> JobProblem:
    return JobProblem(
        "unsafe-archive",
        f"the archive's member {name!r} is refused: {why}",
        "do not use this archive; check its source",
    )
