"""The process table, read from /proc or through psutil: who runs, whose child, in which session, since when."""

import functools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_LINUX = sys.platform.startswith("linux")


@dataclass(frozen=True)
class ProcessIdentity:
    """start_token is opaque: boot id and kernel start ticks (Linux), boot session and start time (macOS)."""

    pid: int
    start_token: str


@dataclass(frozen=True)
class ProcessEntry:
    """One row of the process table."""

    identity: ProcessIdentity
    parent_pid: int
    session_id: int
    zombie: bool


def process_entry(pid: int) -> ProcessEntry | None:
    """The row of one process, a zombie too; None where there is none."""
    if pid <= 0:
        return None
    return _linux_entry(pid) if _LINUX else _other_entry(pid)


def process_table() -> dict[int, ProcessEntry]:
    """Every process of this host by pid, zombies too."""
    if _LINUX:
        pids = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    else:
        import psutil

        pids = psutil.pids()
    return {pid: entry for pid in pids if (entry := process_entry(pid)) is not None}


def _linux_entry(pid: int) -> ProcessEntry | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return parse_linux_stat(pid, text, _boot_id())


def parse_linux_stat(pid: int, text: str, boot_id: str) -> ProcessEntry | None:
    """A row of /proc/<pid>/stat (proc(5)); the name in parentheses may itself hold spaces and parentheses."""
    fields = text[text.rfind(")") + 1 :].split()
    if len(fields) < 20:
        return None
    state, parent, session, start_ticks = fields[0], fields[1], fields[3], fields[19]
    return ProcessEntry(ProcessIdentity(pid, f"{boot_id}:{start_ticks}"), int(parent), int(session), state in "ZXx")


@functools.lru_cache(maxsize=1)
def _boot_id() -> str:
    if _LINUX:
        try:
            return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        except OSError:
            return "unknown-boot"
    try:
        command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown-boot"


def _other_entry(pid: int) -> ProcessEntry | None:
    """Without /proc: psutil. The start time is rounded to milliseconds, since it passed through a float."""
    import psutil

    try:
        process = psutil.Process(pid)
        with process.oneshot():
            token = f"{_boot_id()}:{process.create_time():.3f}"
            zombie = process.status() == psutil.STATUS_ZOMBIE
            parent = process.ppid()
        session = os.getsid(pid)
    except (psutil.Error, OSError):
        return None
    return ProcessEntry(ProcessIdentity(pid, token), parent, session, zombie)


def same_user(pid: int) -> bool:
    """Whether a process belongs to the user that we are."""
    try:
        if _LINUX:
            return Path(f"/proc/{pid}").stat().st_uid == os.getuid()
        import psutil

        return bool(psutil.Process(pid).uids().real == os.getuid())
    except Exception:  # ended meanwhile, or not ours to look at: then it is not ours to signal either
        return False


def carries_variable(pid: int, marker: str) -> bool:
    """Whether "NAME=value" is in the environment that the process was started with."""
    try:
        if _LINUX:
            return os.fsencode(marker) in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        import psutil

        name, _, value = marker.partition("=")
        return bool(psutil.Process(pid).environ().get(name) == value)
    except Exception:  # another user's, or ended meanwhile: not ours
        return False


def resident_bytes_of(pid: int) -> int | None:
    """Resident memory of one process; None where it cannot be read."""
    try:
        if _LINUX:
            return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
        import psutil

        return int(psutil.Process(pid).memory_info().rss)
    except Exception:  # psutil's errors are its own; a process that ended has no size
        return None
