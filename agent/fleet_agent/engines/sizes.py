"""Which installs there are, and what a folder takes on the disk.

Counted are the bytes that the file system allocated (512 x st_blocks), each inode once. uv links files from its cache
into an environment where it can: such a file counts for the environment, and frees nothing when the environment goes.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK_BYTES = 512  # the unit of st_blocks, whatever the file system's own block size is (stat(2))


@dataclass(frozen=True)
class DiskUse:
    """`shared_bytes` of `size_bytes` belong to files that have further links outside the folder."""

    size_bytes: int = 0
    shared_bytes: int = 0

    @property
    def own_bytes(self) -> int:
        """What removing the folder frees."""
        return self.size_bytes - self.shared_bytes


def disk_use(path: Path) -> DiskUse:
    """Of a file, a link (not what it leads to) or a whole folder; what goes away meanwhile counts nothing."""
    allocated: dict[tuple[int, int], int] = {}
    links_outside: dict[tuple[int, int], int] = {}
    for status, is_folder in _below(path):
        inode = (status.st_dev, status.st_ino)
        allocated[inode] = status.st_blocks * BLOCK_BYTES
        # A folder's link count tells its subfolders.
        links = 1 if is_folder else status.st_nlink
        links_outside[inode] = links_outside.get(inode, links) - 1
    shared = sum(size for inode, size in allocated.items() if links_outside[inode] > 0)
    return DiskUse(sum(allocated.values()), shared)


def install_files(engines_dir: Path) -> list[Path]:
    """install.json of every whole install; what is being built or removed may hold one too, and is none."""
    found = sorted(engines_dir.glob("*/install.json"))
    return [file for file in found if not file.parent.name.endswith((".tmp", ".build"))]


def _below(path: Path) -> Iterator[tuple[os.stat_result, bool]]:
    """`path` and everything in it, as (status, whether it is a folder)."""
    try:
        top = path.lstat()
    except OSError:
        return
    is_folder = path.is_dir() and not path.is_symlink()
    yield top, is_folder
    pending = [str(path)] if is_folder else []
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except OSError:
            continue
        for entry in entries:
            try:
                status, inner = entry.stat(follow_symlinks=False), entry.is_dir(follow_symlinks=False)
            except OSError:
                continue
            if inner:
                pending.append(entry.path)
            yield status, inner
