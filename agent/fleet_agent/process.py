"""Processes by identity: pid and start time together, because pids are recycled.

A process whose start time differs from what was written down is another process and is never signalled.
"""

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from fleet_agent.process_table import (
    ProcessEntry,
    ProcessIdentity,
    carries_variable,
    process_entry,
    process_table,
    resident_bytes_of,
    same_user,
)

__all__ = [
    "ProcessIdentity",
    "descendants",
    "exit_code",
    "forget",
    "identity_of",
    "is_alive",
    "is_child",
    "resident_bytes",
    "send_signal",
    "spawn",
    "terminate_tree",
    "tree_members",
    "wait_gone",
]

_POLL_SECONDS = 0.2
_KILL_LIMIT_SECONDS = 10.0


def identity_of(pid: int) -> ProcessIdentity | None:
    """The identity of a running process; None where there is none, or only a zombie of it."""
    entry = process_entry(pid)
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
    entry = process_entry(child.pid)  # there at least as a zombie until we collect it
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


def is_child(identity: ProcessIdentity) -> bool:
    """Whether this process spawned it and has not forgotten it: then its end is not missed.

    exit_code() may be None for a moment after the end: the kernel tells it once the last thread has gone.
    """
    return identity in _children


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
    found = _tree(process_table(), {identity})
    return tuple(sorted(found - {identity}, key=lambda one: one.pid))


def tree_members(identity: ProcessIdentity, extra_marker: str | None = None) -> tuple[ProcessIdentity, ...]:
    """Every running process that belongs to `identity`: itself, its descendants, its session, and, where
    `extra_marker` ("NAME=value" in the environment) is given, every process of ours that carries it.

    The session and the marker find processes whose parent died before them. Once the session's leader is dead,
    its number says less, so a member must then carry the marker too, where one is given.
    """
    table = process_table()
    members = {identity} if is_alive(identity) else set()
    members |= _session_members(table, identity, extra_marker)
    if extra_marker is not None:
        members |= {
            e.identity for e in table.values() if not e.zombie and carries_variable(e.identity.pid, extra_marker)
        }
    spared = _ourselves(table)
    members = {one for one in _tree(table, members) if one.pid not in spared}
    return tuple(sorted(members, key=lambda one: one.pid))


def _session_members(
    table: Mapping[int, ProcessEntry], identity: ProcessIdentity, extra_marker: str | None
) -> set[ProcessIdentity]:
    leader = table.get(identity.pid)
    if leader is not None and leader.identity != identity:
        return set()  # the pid was given away, so our session had ended before
    members = {e.identity for e in table.values() if e.session_id == identity.pid and not e.zombie}
    if leader is not None or extra_marker is None:
        return {one for one in members if same_user(one.pid)}
    return {one for one in members if carries_variable(one.pid, extra_marker)}


def _tree(table: Mapping[int, ProcessEntry], roots: Iterable[ProcessIdentity]) -> set[ProcessIdentity]:
    children: dict[int, list[ProcessEntry]] = {}
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


def _ourselves(table: Mapping[int, ProcessEntry]) -> set[int]:
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
        table = process_table()
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
    sizes = [size for one in identities if is_alive(one) and (size := resident_bytes_of(one.pid)) is not None]
    return sum(sizes) if sizes else None
