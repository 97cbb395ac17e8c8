"""Processes by identity: pid and start time together, because pids are recycled.

A process whose start time differs from what was written down is another process and is never signalled.
"""

import asyncio
import contextlib
import functools
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_LINUX = sys.platform.startswith("linux")
_POLL_SECONDS = 0.2
_KILL_LIMIT_SECONDS = 10.0


@dataclass(frozen=True)
class ProcessIdentity:
    """start_token is opaque: boot id and kernel start ticks (Linux), boot session and start time (macOS)."""

    pid: int
    start_token: str


@dataclass(frozen=True)
class _Entry:
    """One row of the process table."""

    identity: ProcessIdentity
    parent_pid: int
    session_id: int
    zombie: bool


def identity_of(pid: int) -> ProcessIdentity | None:
    """The identity of a running process; None where there is none, or only a zombie of it."""
    entry = _entry(pid)
    return None if entry is None or entry.zombie else entry.identity


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether this very process still runs: False for a zombie and for another process with its pid."""
    return identity_of(identity.pid) == identity


def spawn(
    argv: Sequence[str | Path],
    env: Mapping[str, str],
    cwd: Path | None = None,
    stdout: int | IO[Any] | None = subprocess.DEVNULL,
    stderr: int | IO[Any] | None = subprocess.DEVNULL,
) -> ProcessIdentity:
    """Starts a process in a session of its own, so that it outlives us and its tree can be found again.

    It inherits no file but the two given. Raises OSError where it cannot be started.
    """
    child = subprocess.Popen(
        [str(part) for part in argv],
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )
    entry = _entry(child.pid)  # there at least as a zombie until we collect it
    if entry is None:
        raise ProcessLookupError(f"process {child.pid} vanished as it was started")
    _children[entry.identity] = child
    return entry.identity


_children: dict[ProcessIdentity, "subprocess.Popen[Any]"] = {}


def exit_code(identity: ProcessIdentity) -> int | None:
    """The exit code of an ended process that this process spawned (negative: the signal that ended it).

    None while it runs, and for a process that is not our child: nobody can know that one's. Collects the zombie.
    """
    child = _children.get(identity)
    return None if child is None else child.poll()


def forget(identity: ProcessIdentity) -> None:
    """Drops the record of an ended child; exit_code() no longer knows it."""
    child = _children.get(identity)
    if child is not None and child.poll() is not None:
        del _children[identity]


async def wait_gone(identity: ProcessIdentity, timeout: float | None = None) -> bool:
    """Waits until the process has ended; False where it still runs after `timeout` seconds.

    Works for a process that is not our child. Sleeps on the kernel's own notice (pidfd, kqueue); polls only
    where there is neither.
    """
    watch = _open_watch(identity.pid)
    try:
        if not is_alive(identity):  # asked after the watch was opened, so the watch is on this process
            return True
        if watch is None:
            return await _poll_gone(identity, timeout)
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(watch.fileno(), ended.set)
        try:
            await asyncio.wait_for(ended.wait(), timeout)
            return True
        except (asyncio.TimeoutError, TimeoutError):
            return not is_alive(identity)
        finally:
            loop.remove_reader(watch.fileno())
    finally:
        if watch is not None:
            watch.close()
        exit_code(identity)


class _PidFile:
    """A pidfd: readable once the process has ended."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)


def _open_watch(pid: int) -> Any:
    """A file that becomes readable when the process ends, or None where the system has none."""
    try:
        if sys.platform == "linux" and hasattr(os, "pidfd_open"):
            return _PidFile(os.pidfd_open(pid))
        if sys.platform == "darwin":
            queue = select.kqueue()
            event = select.kevent(pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD, select.KQ_NOTE_EXIT)
            queue.control([event], 0)
            return queue
    except OSError:
        return None  # already gone, no such call in this kernel, or out of descriptors: asking decides
    return None


async def _poll_gone(identity: ProcessIdentity, timeout: float | None) -> bool:
    deadline = None if timeout is None else time.monotonic() + timeout
    while is_alive(identity):
        exit_code(identity)
        if deadline is not None and time.monotonic() >= deadline:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True


def descendants(identity: ProcessIdentity) -> tuple[ProcessIdentity, ...]:
    """The running children of this process, their children, and so on; without itself. Empty where it has ended."""
    if not is_alive(identity):
        return ()
    found = _tree(_process_table(), {identity})
    return tuple(sorted(found - {identity}, key=lambda one: one.pid))


def tree_members(identity: ProcessIdentity, extra_marker: str | None = None) -> tuple[ProcessIdentity, ...]:
    """Every running process that belongs to `identity`: itself, its descendants, its session, and, where
    `extra_marker` ("NAME=value" in the environment) is given, every process of ours that carries it.

    The session and the marker find processes whose parent died before them. Once the session's leader is dead,
    its number says less, so a member must then carry the marker too, where one is given.
    """
    table = _process_table()
    members = {identity} if is_alive(identity) else set()
    members |= _session_members(table, identity, extra_marker)
    if extra_marker is not None:
        members |= {e.identity for e in table.values() if not e.zombie and _carries(e.identity.pid, extra_marker)}
    spared = _ourselves(table)
    members = {one for one in _tree(table, members) if one.pid not in spared}
    return tuple(sorted(members, key=lambda one: one.pid))


def _session_members(
    table: Mapping[int, _Entry], identity: ProcessIdentity, extra_marker: str | None
) -> set[ProcessIdentity]:
    leader = table.get(identity.pid)
    if leader is not None and leader.identity != identity:
        return set()  # the pid was given away, so our session had ended before
    members = {e.identity for e in table.values() if e.session_id == identity.pid and not e.zombie}
    if leader is not None or extra_marker is None:
        return {one for one in members if _same_user(one.pid)}
    return {one for one in members if _carries(one.pid, extra_marker)}


def _tree(table: Mapping[int, _Entry], roots: Iterable[ProcessIdentity]) -> set[ProcessIdentity]:
    children: dict[int, list[_Entry]] = {}
    for entry in table.values():
        children.setdefault(entry.parent_pid, []).append(entry)
    found = set(roots)
    waiting = [one.pid for one in found]
    while waiting:
        for entry in children.get(waiting.pop(), ()):
            if entry.identity not in found and not entry.zombie:
                found.add(entry.identity)
                waiting.append(entry.identity.pid)
    return found


def _ourselves(table: Mapping[int, _Entry]) -> set[int]:
    """This process and its ancestors: never part of a tree that we end."""
    spared = {0, 1}
    pid = os.getpid()
    while pid not in spared:
        spared.add(pid)
        entry = table.get(pid)
        pid = entry.parent_pid if entry else 0
    return spared


async def terminate_tree(
    identity: ProcessIdentity, grace_seconds: float = 20.0, extra_marker: str | None = None
) -> tuple[ProcessIdentity, ...]:
    """SIGTERM to the whole tree, SIGKILL to what is left after `grace_seconds`; returns when all are gone.

    `extra_marker` as in tree_members(). Whoever has another start time than recorded is never signalled. Returns
    the processes that not even SIGKILL ended within ten seconds (stuck in the kernel): normally none.
    """
    known: set[ProcessIdentity] = set()
    deadline = time.monotonic() + grace_seconds
    kill_deadline = deadline + _KILL_LIMIT_SECONDS
    asked: set[ProcessIdentity] = set()
    while True:
        known |= set(tree_members(identity, extra_marker))
        table = _process_table()
        known = {one for one in _tree(table, {o for o in known if is_alive(o)}) if one.pid not in _ourselves(table)}
        if not known:
            _collect_zombies()
            return ()
        now = time.monotonic()
        if now >= kill_deadline:
            return tuple(sorted(known, key=lambda one: one.pid))
        if now >= deadline:
            for one in known:
                send_signal(one, signal.SIGKILL)
        else:
            for one in known - asked:
                send_signal(one, signal.SIGTERM)
            asked |= known
        limit = (deadline if now < deadline else kill_deadline) - now
        await wait_gone(next(iter(known)), min(max(limit, 0.01), 0.5))


def _collect_zombies() -> None:
    for child in _children.values():
        child.poll()


def send_signal(identity: ProcessIdentity, number: signal.Signals) -> bool:
    """Signals this very process; False where it has ended, its pid is another's, or it is not ours to signal."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sys.platform == "linux" and hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal"):
            descriptor = os.pidfd_open(identity.pid)
            try:
                if is_alive(identity):  # the descriptor holds whom we asked about: no race with recycling
                    signal.pidfd_send_signal(descriptor, number)
                    return True
                return False
            finally:
                os.close(descriptor)
        if is_alive(identity):
            os.kill(identity.pid, number)
            return True
    return False


def resident_bytes(identities: Iterable[ProcessIdentity]) -> int | None:
    """Resident memory of these processes together (shared pages count in each); None where none could be read."""
    sizes = [size for one in identities if is_alive(one) and (size := _resident_bytes(one.pid)) is not None]
    return sum(sizes) if sizes else None


def _resident_bytes(pid: int) -> int | None:
    try:
        if _LINUX:
            return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
        import psutil

        return int(psutil.Process(pid).memory_info().rss)
    except Exception:  # psutil's errors are its own; a process that ended has no size
        return None


def _entry(pid: int) -> _Entry | None:
    if pid <= 0:
        return None
    return _linux_entry(pid) if _LINUX else _other_entry(pid)


def _process_table() -> dict[int, _Entry]:
    if _LINUX:
        pids = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    else:
        import psutil

        pids = psutil.pids()
    return {pid: entry for pid in pids if (entry := _entry(pid)) is not None}


def _linux_entry(pid: int) -> _Entry | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return parse_linux_stat(pid, text, _boot_id())


def parse_linux_stat(pid: int, text: str, boot_id: str) -> _Entry | None:
    """A row of /proc/<pid>/stat (proc(5)); the name in parentheses may itself hold spaces and parentheses."""
    fields = text[text.rfind(")") + 1 :].split()
    if len(fields) < 20:
        return None
    state, parent, session, start_ticks = fields[0], fields[1], fields[3], fields[19]
    return _Entry(ProcessIdentity(pid, f"{boot_id}:{start_ticks}"), int(parent), int(session), state in "ZXx")


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


def _other_entry(pid: int) -> _Entry | None:
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
    return _Entry(ProcessIdentity(pid, token), parent, session, zombie)


def _same_user(pid: int) -> bool:
    try:
        if _LINUX:
            return Path(f"/proc/{pid}").stat().st_uid == os.getuid()
        import psutil

        return bool(psutil.Process(pid).uids().real == os.getuid())
    except Exception:  # ended meanwhile, or not ours to look at: then it is not ours to signal either
        return False


def _carries(pid: int, marker: str) -> bool:
    """Whether "NAME=value" is in the environment that the process was started with."""
    try:
        if _LINUX:
            return os.fsencode(marker) in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        import psutil

        name, _, value = marker.partition("=")
        return bool(psutil.Process(pid).environ().get(name) == value)
    except Exception:  # another user's, or ended meanwhile: not ours
        return False
