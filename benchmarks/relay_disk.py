"""The disk under a lab: is it one, how fast is it, has it the room, and how to make it read again what it was given."""

import contextlib
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

MEMORY_FILE_SYSTEMS = {"tmpfs", "ramfs", "devtmpfs"}
PROBE_BYTES, PROBE_SECONDS, BLOCK_BYTES, SYNC_BYTES = 2 << 30, 4.0, 1 << 20, 16 << 20
SPARE_BYTES = 2 << 30  # left free for whatever else uses the disk
# Of what the disk and the processors can do, so much is planned with: nothing may wait for them.
SHARE = 0.6
CORE_SECONDS_PER_GIB = 8.0  # relaying with TLS, shaping included, at 16 hosts (docs/benchmarks.md)


@dataclass(frozen=True)
class DiskSpeed:
    """Bytes a second of one file: written and synced every 16 MiB, as the relay does; read again with cold caches."""

    file_system: str
    write: float
    read: float

    def __str__(self) -> str:
        return f"{self.file_system}: writes {self.write / 1e6:.0f} MB/s synced, reads {self.read / 1e6:.0f} MB/s cold"


def file_system_of(folder: Path) -> str:
    """Its type, as the kernel names it."""
    place = folder.resolve()
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    holding = [(len(point), kind) for point, kind in mounts if place.is_relative_to(point)]
    return max(holding)[1]


def measure_disk(folder: Path) -> DiskSpeed:
    """Takes a few seconds. Ends the benchmark where the folder is in memory."""
    kind = file_system_of(folder)
    if kind in MEMORY_FILE_SYSTEMS:
        raise SystemExit(f"{folder} is in memory ({kind}); name a folder on a disk: --folder")
    require_room(folder, PROBE_BYTES)
    with tempfile.NamedTemporaryFile(dir=folder) as stream:
        write = _write(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        drop_caches()
        read = _read(Path(stream.name))
    return DiskSpeed(kind, write, read)


def _write(descriptor: int) -> float:
    block, written, started = os.urandom(BLOCK_BYTES), 0, time.monotonic()
    while written < PROBE_BYTES and time.monotonic() - started < PROBE_SECONDS:
        for _ in range(SYNC_BYTES // BLOCK_BYTES):
            written += os.write(descriptor, block)
        os.fsync(descriptor)
    return written / (time.monotonic() - started)


def _read(path: Path) -> float:
    size, started = 0, time.monotonic()
    with path.open("rb", buffering=0) as stream:
        while time.monotonic() - started < PROBE_SECONDS and (block := stream.read(BLOCK_BYTES)):
            size += len(block)
    return size / (time.monotonic() - started)


def drop_caches() -> bool:
    """What was read or written must come from the disk again; False where this user may not."""
    os.sync()
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return True
    return False


def require_room(folder: Path, wanted_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < wanted_bytes + SPARE_BYTES:
        raise SystemExit(
            f"{folder} has {free / 1e9:.1f} GB free, {(wanted_bytes + SPARE_BYTES) / 1e9:.1f} GB are needed;"
            " name another folder (--folder), fewer hosts or a smaller file"
        )


def link_rate_for(speed: DiskSpeed, hosts: int) -> float:
    """Bytes a second of each link, in whole Mbit/s: so low that neither disk nor processors are what is measured."""
    by_disk = speed.write * SHARE / hosts
    by_processors = (os.cpu_count() or 1) * SHARE / CORE_SECONDS_PER_GIB * (1 << 30) / hosts
    return max(1, int(min(by_disk, by_processors, speed.read * SHARE) * 8 / 1e6)) * 125_000.0
