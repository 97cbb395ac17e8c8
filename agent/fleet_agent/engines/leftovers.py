"""What lies in the engines folder and is no install: what crashes left, build folders, sources, locks.

engines/<key>.tmp, <key>.build, <key> without install.json; engines/sources/<key>, <key>.tmp, .<key>.*; .locks/*.lock.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from fleet_agent.engines.sizes import disk_use, install_files
from fleet_agent.engines.uses import Uses
from fleet_agent.file_lock import try_file_lock
from fleet_agent.layout import Layout

SOMEBODY = "a running process"


class LeftoverKind(str, Enum):
    """Names are those of the wire."""

    UNFINISHED = "LEFTOVER_KIND_UNFINISHED"
    BUILD = "LEFTOVER_KIND_BUILD"
    SOURCE = "LEFTOVER_KIND_SOURCE"
    DOWNLOAD = "LEFTOVER_KIND_DOWNLOAD"
    LOCK = "LEFTOVER_KIND_LOCK"


@dataclass(frozen=True)
class Leftover:
    """`path` within the engines folder; `lock` is the name of the lock that its writers hold."""

    path: str
    kind: LeftoverKind
    lock: str
    size_bytes: int = 0
    used_by: tuple[str, ...] = ()


def lock_path(layout: Layout, lock: str) -> Path:
    return layout.engines_dir / ".locks" / f"{lock}.lock"


def find_leftovers(layout: Layout, uses: Uses) -> tuple[Leftover, ...]:
    """All of them by path, without their sizes."""
    found = [*_of_installs(layout, uses), *_of_sources(layout, uses), *_locks(layout, uses)]
    return tuple(sorted((_with_holder(layout, one) for one in found), key=lambda one: one.path))


def measured(layout: Layout, leftover: Leftover) -> Leftover:
    """With what removing it frees."""
    return replace(leftover, size_bytes=disk_use(layout.engines_dir / leftover.path).own_bytes)


def _of_installs(layout: Layout, uses: Uses) -> Iterator[Leftover]:
    for entry in _entries(layout.engines_dir):
        name = entry.name
        if entry == layout.sources_dir or name.startswith(".") or not entry.is_dir():
            continue
        key = name.removesuffix(".tmp").removesuffix(".build")
        kind = LeftoverKind.BUILD if name.endswith(".build") else LeftoverKind.UNFINISHED
        if key != name or not (entry / "install.json").is_file():
            yield Leftover(name, kind, key, used_by=uses.jobs.get(key, ()))


def _of_sources(layout: Layout, uses: Uses) -> Iterator[Leftover]:
    linked = _linked_sources(layout)
    for entry in _entries(layout.sources_dir):
        name, path = entry.name, str(entry.relative_to(layout.engines_dir))
        if name.startswith("."):
            users = [user for key, jobs in uses.sources.items() if name.startswith(f".{key}.") for user in jobs]
            yield Leftover(path, LeftoverKind.DOWNLOAD, _source_lock(name, uses), used_by=tuple(users))
        elif name.endswith(".tmp"):
            key = name.removesuffix(".tmp")
            yield Leftover(path, LeftoverKind.UNFINISHED, f"source-{key}", used_by=uses.sources.get(key, ()))
        else:
            users = [*uses.sources.get(name, ()), *linked.get(name, ())]
            yield Leftover(path, LeftoverKind.SOURCE, f"source-{name}", used_by=tuple(users))


def _source_lock(download: str, uses: Uses) -> str:
    """The lock of the job that writes this download; without such a job its own name, which nobody locks."""
    return next((f"source-{key}" for key in uses.sources if download.startswith(f".{key}.")), f"source-{download}")


def _locks(layout: Layout, uses: Uses) -> Iterator[Leftover]:
    """Locks whose install or source is gone and which nobody is about to make."""
    for entry in _entries(layout.engines_dir / ".locks"):
        lock = entry.name.removesuffix(".lock")
        source = lock.removeprefix("source-")
        is_source = lock != source
        present = (layout.sources_dir / source).exists() if is_source else (layout.engines_dir / lock).exists()
        if not present:
            users = uses.sources.get(source, ()) if is_source else uses.jobs.get(lock, ())
            yield Leftover(f".locks/{entry.name}", LeftoverKind.LOCK, lock, used_by=users)


def _linked_sources(layout: Layout) -> dict[str, tuple[str, ...]]:
    """Sources whose binaries an install only links to, with the keys of those installs."""
    found: dict[str, tuple[str, ...]] = {}
    for file in install_files(layout.engines_dir):
        try:
            adopted = Path(str(json.loads(file.read_text(encoding="utf-8")).get("adopted_path") or "/"))
        except (OSError, ValueError, AttributeError):
            continue
        if adopted.is_relative_to(layout.sources_dir) and adopted != layout.sources_dir:
            name = adopted.relative_to(layout.sources_dir).parts[0]
            found[name] = (*found.get(name, ()), file.parent.name)
    return found


def _with_holder(layout: Layout, leftover: Leftover) -> Leftover:
    """A lock that is held tells of work that no job of ours names any more."""
    path = lock_path(layout, leftover.lock)
    if leftover.used_by or not path.exists():
        return leftover
    with try_file_lock(path) as ours:
        return leftover if ours else replace(leftover, used_by=(SOMEBODY,))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
