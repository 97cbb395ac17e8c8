"""Starting, finding and ending forwards, from the command line's side."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from fleet_controller.forwarding.processes import ProcessIdentity, identity_of, is_alive, machine_id, send_signal
from fleet_controller.forwarding.record import (
    Forward,
    ForwardState,
    log_path,
    read_forward,
    record_path,
    write_forward,
)
from fleet_controller.forwarding.supervisor import port_answers

START_SECONDS = 20.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.05
LAST_PORT = 65535


class ForwardError(Exception):
    """A forward cannot be started or stopped. `remedy` says what to do."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


@contextmanager
def forwards_lock(folder: Path) -> Iterator[None]:
    """One command at a time chooses ports and starts supervisors."""
    with (folder / ".lock").open("a", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def why_not_free(port: int) -> str:
    """Why a forward cannot listen on 127.0.0.1:`port`; "" where it can."""
    if port_answers(port):  # macOS would let us bind beside a server on all addresses
        return "is taken on this machine"
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as ssh does
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            return "may only be used by the administrator"
        except OSError:
            return "is taken on this machine"
    return ""


def free_port(first: int, reserved: frozenset[int]) -> int:
    """`first`, or the next port that is free and not promised to another forward. Raises ForwardError."""
    for port in range(first, LAST_PORT + 1):
        if port not in reserved and not why_not_free(port):
            return port
    raise ForwardError(f"no port from {first} on is free on this machine", "name one with --port")


def new_forward(model: str, host: str, local_port: int, remote: tuple[str, int], argv: tuple[str, ...]) -> Forward:
    now_ms = int(time.time() * 1000)
    return Forward(
        model=model,
        host=host,
        local_port=local_port,
        remote_address=remote[0],
        remote_port=remote[1],
        argv=argv,
        machine=machine_id(),
        machine_name=socket.gethostname(),
        created_unix_ms=now_ms,
        since_unix_ms=now_ms,
    )


def start_forward(folder: Path, forward: Forward) -> Forward:
    """Writes the forward down and starts its supervisor, which outlives us. Returns once it has taken over.

    Call it under `forwards_lock`. Raises ForwardError.
    """
    path = record_path(folder, forward.model, forward.host)
    write_forward(path, forward)
    with log_path(path).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fleet_controller.forwarding.supervisor", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        found = read_forward(path)
        if found is not None and found.supervisor is not None:
            return found
        if process.poll() is not None:
            break
        time.sleep(POLL_SECONDS)
    process.kill()
    process.wait()
    path.unlink(missing_ok=True)
    said = log_path(path).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise ForwardError(f"the forward's process did not start: {said[-1] if said else 'it printed nothing'}")


def wait_until_up(folder: Path, forward: Forward, seconds: float, is_final: Callable[[Forward], bool]) -> Forward:
    """The forward once it is up, `is_final` says that waiting is in vain, or `seconds` have passed."""
    path = record_path(folder, forward.model, forward.host)
    deadline = time.monotonic() + seconds
    while True:
        found = read_forward(path) or replace(forward, state=ForwardState.ENDED)
        if found.carries or not found.is_kept_up or is_final(found) or time.monotonic() > deadline:
            return found
        time.sleep(POLL_SECONDS)


def stop_forward(folder: Path, forward: Forward) -> bool:
    """Ends its processes, waits until they are gone, forgets it. Returns whether anything ran.

    Only the very processes that were written down are signalled. Raises ForwardError where it is another machine's.
    """
    if forward.is_elsewhere:
        raise ForwardError(
            f"{forward.name} is forwarded on {forward.machine_name}, which shares this state folder",
            f"stop it there, or delete {record_path(folder, forward.model, forward.host)} if that machine is gone",
        )
    path = record_path(folder, forward.model, forward.host)
    ran = _end(forward.supervisor)
    latest = read_forward(path) or forward
    # Left behind by a supervisor that was killed: its ssh still holds the port.
    for left in {forward.ssh, latest.ssh}:
        ran = _end(left) or ran
    path.unlink(missing_ok=True)
    log_path(path).unlink(missing_ok=True)
    return ran


def _end(identity: ProcessIdentity | None) -> bool:
    if identity is None or not is_alive(identity):
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        send_signal(identity, number)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            _collect(identity.pid)
            if identity_of(identity.pid) != identity:
                return True
            time.sleep(POLL_SECONDS)
    raise ForwardError(f"process {identity.pid} does not end")


def _collect(pid: int) -> None:
    """Takes the zombie of a supervisor that this very process started."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
