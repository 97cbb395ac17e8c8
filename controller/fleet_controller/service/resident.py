"""The resident controller as a process: one per state folder, found by a lock, identified by pid and start time.

The lock (flock) is the truth: it is held as long as the process lives and goes with it, however it ends. The
identity file only says which process holds it.
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from fleet_controller.settings import Settings, private_folder

START_SECONDS = 30.0
STOP_SECONDS = 20.0
POLL_SECONDS = 0.05
LOG_TAIL_LINES = 5


class ResidentError(Exception):
    """The resident controller cannot be started or stopped. `remedy` says what to do."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class Identity:
    """A process: pids are recycled, so its start time belongs to its name."""

    pid: int
    start_token: str
    machine: str
    socket_path: str


def start_token(pid: int) -> str | None:
    """Start time of a process in the kernel's own units, or None where there is no such process."""
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            return None
        return None if fields[0] == "Z" else fields[19]
    listed = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return listed.stdout.strip() or None


def own_identity(settings: Settings) -> Identity:
    return Identity(os.getpid(), start_token(os.getpid()) or "", socket.gethostname(), str(settings.socket_path))


def take_lock(settings: Settings) -> IO[str] | None:
    """The lock of the state folder, held until the returned file is closed; None where another process has it."""
    private_folder(settings.state_dir)
    handle = settings.lock_file.open("a", encoding="utf-8")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        return None
    return handle


def find_resident(settings: Settings) -> Identity | None:
    """The resident controller of this machine, or None. Looks at the lock and at the process, opens no connection."""
    if not settings.identity_file.exists():
        return None
    try:
        identity = Identity(**json.loads(settings.identity_file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    if identity.machine != socket.gethostname() or start_token(identity.pid) != identity.start_token:
        return None
    return identity if Path(identity.socket_path).exists() else None


def write_identity(settings: Settings) -> None:
    beside = settings.identity_file.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(asdict(own_identity(settings))), encoding="utf-8")
    beside.replace(settings.identity_file)


def start_resident(settings: Settings) -> tuple[Identity, bool]:
    """Start it in the background and wait until its socket is there. Returns who it is, and whether we started it."""
    present = find_resident(settings)
    if present is not None:
        return present, False
    private_folder(settings.state_dir)
    private_folder(settings.socket_path.parent)
    with settings.log_file.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fleet_controller.service"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        found = find_resident(settings)
        if found is not None:  # ours, or that of someone who started one at the same moment
            return found, found.pid == process.pid
        if process.poll() not in (None, 0):
            raise ResidentError(
                f"the controller ended while it started: {_log_tail(settings)}", f"see {settings.log_file}"
            )
        time.sleep(POLL_SECONDS)
    process.terminate()
    raise ResidentError(f"the controller did not come up in {START_SECONDS:.0f} s", f"see {settings.log_file}")


def stop_resident(settings: Settings) -> Identity | None:
    """End it and wait until it is gone; returns who it was, or None. Only that very process is signalled."""
    present = find_resident(settings)
    if present is None:
        return None
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STOP_SECONDS
        if start_token(present.pid) == present.start_token:
            os.kill(present.pid, number)
        while time.monotonic() < deadline:
            if start_token(present.pid) != present.start_token:
                return present
            time.sleep(POLL_SECONDS)
    raise ResidentError(f"the controller (pid {present.pid}) does not end", f"see {settings.log_file}")


def _log_tail(settings: Settings) -> str:
    try:
        lines = settings.log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return "no log"
    return " | ".join(lines[-LOG_TAIL_LINES:]) or "the log is empty"
