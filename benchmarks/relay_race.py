"""A way of distributing that is one command on each host: all start at once, and the last one's end counts.

A command says "ready", waits for a line, works, and says "done" once its host has the whole file.
"""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from benchmarks.relay_cpu import CpuSeconds, cpu_of_ended_children, cpu_of_process
from benchmarks.relay_hub import Hub
from benchmarks.relay_load import Load, Outcome

LIMIT_FACTOR = 40.0
LIMIT_SECONDS = 60.0  # at least: a small file is all start-up
END_SECONDS = 60.0
Process = subprocess.Popen[str]


def shell(prefix: Sequence[str], work: str) -> list[str]:
    """The racer that runs a line of bash."""
    return [*prefix, "bash", "-c", f"echo ready; read line; {work} && echo done"]


@contextlib.contextmanager
def racers(commands: Sequence[Sequence[str]]) -> Iterator[list[Process]]:
    """One process for each command, all ready; ended with the block."""
    processes: list[Process] = []
    try:
        for command in commands:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
            )
            processes.append(process)
        for process in processes:
            expect(process, "ready")
        yield processes
    finally:
        kill(processes)
        for process in processes:
            process.communicate()


def kill(processes: Sequence[Process]) -> None:
    """With all that they started: what a shell runs has the shell's process group."""
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def server(prefix: Sequence[str], command: Sequence[str], address: str, port: int) -> Iterator[Process]:
    """A process that others need, once its port is open; ended with the block."""
    process = subprocess.Popen([*prefix, *command], text=True)
    try:
        deadline = time.monotonic() + END_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1.0):
                break
            time.sleep(0.05)
        else:
            raise SystemExit(f"{shlex.join(command)} does not serve")
        yield process
    finally:
        end(process)


def end(process: Process) -> None:
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def expect(process: Process, word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    raise SystemExit(f"{shlex.join(map(str, process.args))} ended ({process.wait()}) before it was {word}")  # type: ignore[arg-type]


def race(
    way: str,
    load: Load,
    processes: Sequence[Process],
    hosts: int,
    *,
    hub: Hub | None = None,
    first: Callable[[], None] = lambda: None,
    servers: Sequence[Process] = (),
) -> Outcome:
    """From a line to each process until the last says that it is done; `first` is done before, and counted.

    Servers are ended at the end, so that what they used of the CPU is counted, too; the hub's is not.
    """
    limit = max(LIMIT_SECONDS, load.ideal_seconds * LIMIT_FACTOR)
    watch = threading.Timer(limit, kill, [processes])
    watch.start()
    try:
        before = cpu_of_ended_children() + cpu_of([*processes, *servers])
        started = time.monotonic()
        first()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        for process in processes:
            expect(process, "done")
        seconds = time.monotonic() - started
    finally:
        watch.cancel()
    uplink = hub.uplink() if hub else None
    for process in processes:
        process.communicate(timeout=END_SECONDS)
    for process in servers:
        end(process)
    cpu = cpu_of_ended_children() - before
    return Outcome(way, hosts, seconds / load.ideal_seconds, seconds, cpu, uplink)


def cpu_of(processes: Sequence[Process]) -> CpuSeconds:
    return sum((cpu_of_process(process.pid) for process in processes), CpuSeconds())
