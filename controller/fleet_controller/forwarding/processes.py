"""Processes by identity: pid, start time and boot together. Pids are recycled, and a state folder outlives a boot."""

import functools
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fleet_controller.service.resident import start_token


@dataclass(frozen=True)
class ProcessIdentity:
    """`start_token` is opaque: boot id and kernel start ticks (Linux), start time to the second (macOS)."""

    pid: int
    start_token: str


def identity_of(pid: int) -> ProcessIdentity | None:
    """The identity of a running process; None where there is none, or only a zombie of it."""
    token = start_token(pid) if pid > 0 else None
    return None if token is None else ProcessIdentity(pid, f"{_boot_id()}:{token}")


def is_alive(identity: ProcessIdentity | None) -> bool:
    return identity is not None and identity_of(identity.pid) == identity


def send_signal(identity: ProcessIdentity, number: signal.Signals) -> bool:
    """Signals this very process; False where it has ended, its pid is another's, or it is not ours to signal."""
    with suppress(ProcessLookupError, PermissionError):
        if sys.platform == "linux":
            descriptor = os.pidfd_open(identity.pid)
            try:  # the descriptor holds whom we asked about: no race with recycling
                if not is_alive(identity):
                    return False
                signal.pidfd_send_signal(descriptor, number)
                return True
            finally:
                os.close(descriptor)
        if is_alive(identity):
            os.kill(identity.pid, number)
            return True
    return False


@functools.cache
def machine_id() -> str:
    """This machine, whatever its name is today: a state folder may lie in a home that many machines mount."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with suppress(OSError):
            text = Path(path).read_text(encoding="ascii").strip()
            if text:
                return text
    return _sysctl("kern.uuid") or os.uname().nodename


@functools.cache
def _boot_id() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return _sysctl("kern.bootsessionuuid")


def _sysctl(name: str) -> str:
    try:
        return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
