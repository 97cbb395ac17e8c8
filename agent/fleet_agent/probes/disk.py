"""The disks behind the folders we write to."""

import os
import re
import sys
from pathlib import Path

from fleet_agent.probes.model import DiskFacts, ProbeContext
from fleet_agent.probes.reading import ReadingError, read_text, run_text

_NETWORK_FILESYSTEMS = frozenset(
    {
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "afpfs", "webdav", "afs", "ceph", "lustre", "gpfs", "beegfs",
        "glusterfs", "9p", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.beegfs", "fuse.juicefs", "macfuse",
    }
)  # fmt: skip


def read(context: ProbeContext) -> tuple[DiskFacts, ...]:
    layout = context.layout
    folders = [
        ("state", layout.machine_dir),
        ("engines", layout.engines_dir),
        ("models", layout.hf_home),
        ("home", Path.home()),
    ]
    if layout.model_dir is not None:
        folders.append(("model folder", layout.model_dir))
    return tuple(read_folder(purpose, folder) for purpose, folder in folders)


def read_folder(purpose: str, folder: Path) -> DiskFacts:
    """The disk that holds `folder`, or would hold it once created: then that of its nearest parent."""
    there = nearest_existing(folder)
    try:
        state = os.statvfs(there)
    except OSError:
        return DiskFacts(purpose, str(folder), filesystem=filesystem_of(there))
    read_only = bool(state.f_flag & os.ST_RDONLY)
    return DiskFacts(
        purpose=purpose,
        path=str(folder),
        total_bytes=state.f_blocks * state.f_frsize,
        free_bytes=state.f_bavail * state.f_frsize,
        filesystem=filesystem_of(there),
        writable=not read_only and os.access(there, os.W_OK),
    )


def nearest_existing(folder: Path) -> Path:
    for candidate in (folder, *folder.parents):
        if candidate.exists():
            return candidate
    return Path("/")


def filesystem_of(folder: Path) -> str | None:
    """The type of the file system that holds `folder`; None where it cannot be told."""
    there = str(nearest_existing(folder).resolve())
    if sys.platform == "darwin":
        try:
            mounts = parse_mac_mount(run_text(["/sbin/mount"]))
        except ReadingError:
            return None
    else:
        mounts = parse_mountinfo(read_text("/proc/self/mountinfo") or "")
    return find_mount(mounts, there)


def find_mount(mounts: list[tuple[str, str]], path: str) -> str | None:
    """The type of the mount with the longest mount point above `path`; of equal ones the last covers the others."""
    best: tuple[str, str] | None = None
    for point, filesystem in mounts:
        prefix = point if point.endswith("/") else point + "/"
        if (path == point or path.startswith(prefix)) and (best is None or len(point) >= len(best[0])):
            best = (point, filesystem)
    return best[1] if best else None


def parse_mountinfo(text: str) -> list[tuple[str, str]]:
    """(mount point, type) of each line of /proc/self/mountinfo (proc(5)); blanks are written as \\040."""
    mounts = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split()
        if separator and len(fields) >= 5:
            point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found.group(1), 8)), fields[4])
            mounts.append((point, after.split()[0]))
    return mounts


def parse_mac_mount(text: str) -> list[tuple[str, str]]:
    """(mount point, type) of each line of macOS's mount: "/dev/disk3s1 on / (apfs, sealed, local)"."""
    return re.findall(r"^.+? on (.+) \((\w+)", text, re.MULTILINE)


def is_network_filesystem(filesystem: str) -> bool:
    return filesystem in _NETWORK_FILESYSTEMS
