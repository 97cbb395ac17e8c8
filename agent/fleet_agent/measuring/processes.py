"""How much CPU each process of this host uses between two looks, and which of them are not ours.

Linux tells everybody's CPU time; elsewhere psutil tells what this user may see, and the rest is absent.
"""

import contextlib
import os
import pwd
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

_LINE_BYTES = 4096
_KERNEL_THREADS = 2  # the parent of Linux's kernel threads


@dataclass(frozen=True)
class ProcessTime:
    """CPU seconds of a process so far; `started` tells it from a later one with the same pid."""

    pid: int
    parent_pid: int
    started: str
    cpu_seconds: float
    command: str


@dataclass(frozen=True)
class ForeignProcess:
    """A process that is not part of this measurement; percent of one core between two looks."""

    pid: int
    command: str
    user: str
    cpu_percent: float

    def describe(self) -> str:
        return f"{self.user}, {self.command}, {self.cpu_percent:.0f} % of a core"


class ProcessWatch:
    """Remembers the last look. Ours are this process, its ancestors, and the trees of this process and of `allowed`."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, str], float] = {}
        self._last_time = 0.0
        self._ours: set[tuple[int, str]] = set()
        self.own_pids: frozenset[int] = frozenset()

    def look(self, allowed: Collection[int] = ()) -> tuple[ForeignProcess, ...]:
        """Foreign processes that computed since the last look, busiest first; empty at the first one."""
        table = process_times()
        now = time.monotonic()
        self._ours = own_processes(table, {os.getpid(), *allowed}, self._ours)
        self.own_pids = frozenset(pid for pid, _ in self._ours)
        seconds = now - self._last_time
        found = []
        for process in table.values():
            key = (process.pid, process.started)
            before = self._last.get(key)
            if key in self._ours or process.parent_pid == _KERNEL_THREADS or before is None or seconds <= 0:
                continue
            percent = (process.cpu_seconds - before) / seconds * 100
            if percent > 0:
                found.append(ForeignProcess(process.pid, process.command, user_of(process.pid), percent))
        self._last = {(process.pid, process.started): process.cpu_seconds for process in table.values()}
        self._last_time = now
        return tuple(sorted(found, key=lambda one: -one.cpu_percent))


def own_processes(
    table: Mapping[int, ProcessTime], roots: Collection[int], known: Collection[tuple[int, str]]
) -> set[tuple[int, str]]:
    """Roots, their descendants, our own ancestors, and what was ours before: a parent may have died meanwhile."""
    ours = {(pid, table[pid].started) for pid in roots if pid in table}
    ours |= {(pid, started) for pid, started in known if pid in table and table[pid].started == started}
    children: dict[int, list[ProcessTime]] = {}
    for process in table.values():
        children.setdefault(process.parent_pid, []).append(process)
    waiting = [pid for pid, _ in ours]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if (child.pid, child.started) not in ours:
                ours.add((child.pid, child.started))
                waiting.append(child.pid)
    return ours | _ancestors(table)


def _ancestors(table: Mapping[int, ProcessTime]) -> set[tuple[int, str]]:
    found: set[tuple[int, str]] = set()
    pid = os.getppid()
    while pid > 1 and pid in table:
        found.add((pid, table[pid].started))
        pid = table[pid].parent_pid
    return found


def process_times() -> dict[int, ProcessTime]:
    """Every process that can be read, by pid."""
    if sys.platform != "linux":
        return _times_from_psutil()
    found: dict[int, ProcessTime] = {}
    ticks = os.sysconf("SC_CLK_TCK")
    for name in os.listdir("/proc"):  # noqa: PTH208 - once a second while something is measured: the cheapest way
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                process = parse_stat(int(name), _read(f"/proc/{name}/stat"), ticks)
                found[process.pid] = process
    return found


def _read(path: str) -> bytes:
    """A file of one line, without a file object around it: there is one for every process, every second."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _LINE_BYTES)
    finally:
        os.close(descriptor)


def parse_stat(pid: int, line: bytes, ticks_per_second: int) -> ProcessTime:
    """A line of /proc/<pid>/stat (proc(5)); the name may hold anything. Raises IndexError, ValueError."""
    end = line.rindex(b")")
    fields = line[end + 1 :].split()
    cpu_seconds = (int(fields[11]) + int(fields[12])) / ticks_per_second
    command = line[line.index(b"(") + 1 : end].decode(errors="replace")
    return ProcessTime(pid, int(fields[1]), fields[19].decode(), cpu_seconds, command)


def _times_from_psutil() -> dict[int, ProcessTime]:
    import psutil

    found: dict[int, ProcessTime] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError), process.oneshot():
            used = process.cpu_times()
            started = f"{process.create_time():.3f}"
            found[process.pid] = ProcessTime(
                process.pid, process.ppid(), started, used.user + used.system, process.name()
            )
    return found


def user_of(pid: int) -> str:
    try:
        if sys.platform == "linux":
            return pwd.getpwuid(Path(f"/proc/{pid}").stat().st_uid).pw_name
        import psutil

        return str(psutil.Process(pid).username())
    except Exception:  # ended meanwhile, or of a user without a name here
        return "somebody"
