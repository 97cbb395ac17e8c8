"""Keeps one forward up: starts its ssh, sees when it carries, starts it again with growing pauses, ends it when told.

It owns the forward's file from its start. It ends by SIGTERM, or when the file is no longer its own.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from fleet_controller.forwarding.causes import LOGIN_REFUSED, NO_SSH, PORT_TAKEN, Cause, cause_of
from fleet_controller.forwarding.processes import identity_of
from fleet_controller.forwarding.record import Forward, ForwardState, log_path, read_forward, write_forward

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 15.0
# Hosts that count failed logins lock the user out; whoever adds a key waits a minute.
REFUSED_PAUSE_SECONDS = 60.0
# One that held so long starts its next pauses from the beginning.
STEADY_SECONDS = 10.0
CONNECTING_POLL_SECONDS = 0.1
UP_POLL_SECONDS = 0.5
END_SECONDS = 5.0
LOG_LIMIT_BYTES = 256 * 1024
LOG_TAIL_BYTES = 8 * 1024


def port_answers(port: int) -> bool:
    """Whether anything on this machine takes connections on 127.0.0.1:`port`."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
    except OSError:
        return False


class Supervisor:
    """Of the forward in the file at `path`."""

    def __init__(self, path: Path, forward: Forward) -> None:
        self._path = path
        self._forward = replace(forward, supervisor=identity_of(os.getpid()))
        self._inode = write_forward(path, self._forward)
        self._stopped = False
        self._wakes, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        self._up_since: float | None = None

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the terminal is not its business
        pause = FIRST_PAUSE_SECONDS
        while not self._is_over():
            cause = self._attempt()
            if cause is None:
                break
            was_up = self._up_since is not None
            if self._up_since is not None and time.monotonic() - self._up_since >= STEADY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            wait = REFUSED_PAUSE_SECONDS if cause.code == LOGIN_REFUSED else pause
            self._note_failure(cause, wait, was_up)
            self._pause(wait, until_over=True)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        if self._file_is_ours():
            self._note(ssh=None)

    def _attempt(self) -> Cause | None:
        """One life of an ssh: why it ended; None where it was we who ended it."""
        self._up_since = None
        port = self._forward.local_port
        if port_answers(port):  # ssh would say so, too, but what answers must not be taken for it meanwhile
            return Cause(PORT_TAKEN, f"port {port} of this machine was taken by another program")
        log = log_path(self._path)
        with log.open("ab") as printed:
            if printed.tell() > LOG_LIMIT_BYTES:
                printed.truncate(0)
            start = os.fstat(printed.fileno()).st_size
            try:
                ssh = subprocess.Popen(
                    self._forward.argv, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed, env=_environment()
                )
            except OSError as error:
                return Cause(NO_SSH, f"ssh cannot be started: {error.strerror}")
        self._note(state=ForwardState.CONNECTING, ssh=identity_of(ssh.pid), since_unix_ms=_now_ms())
        while (code := ssh.poll()) is None:
            if self._is_over():
                _end(ssh)
                return None
            if self._up_since is None and port_answers(port) and ssh.poll() is None:
                self._up_since = time.monotonic()
                self._note(state=ForwardState.UP, since_unix_ms=_now_ms(), cause="", message="", next_try_unix_ms=None)
            with suppress(OSError):
                if log.stat().st_size > LOG_LIMIT_BYTES:
                    os.truncate(log, 0)  # ssh appends, so it goes on at the new end
                    start = 0
            self._pause(CONNECTING_POLL_SECONDS if self._up_since is None else UP_POLL_SECONDS)
        return cause_of(_text_since(log, start), code)

    def _note_failure(self, cause: Cause, wait_seconds: float, was_up: bool) -> None:
        self._note(
            state=ForwardState.WAITING,
            ssh=None,
            since_unix_ms=_now_ms() if was_up else self._forward.since_unix_ms,
            reconnects=self._forward.reconnects + was_up,
            cause=cause.code,
            message=cause.message,
            next_try_unix_ms=_now_ms() + int(wait_seconds * 1000),
        )

    def _note(self, **changes: Any) -> None:
        if self._file_is_ours():
            self._forward = replace(self._forward, **changes)
            self._inode = write_forward(self._path, self._forward)

    def _file_is_ours(self) -> bool:
        try:
            return self._path.stat().st_ino == self._inode
        except OSError:
            return False

    def _is_over(self) -> bool:
        return self._stopped or not self._file_is_ours()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopped = True
        with suppress(OSError):
            os.write(self._waker, b".")

    def _pause(self, seconds: float, until_over: bool = False) -> None:
        """Sleeps; a signal ends it at once, with `until_over` so does a file that is no longer ours."""
        deadline = time.monotonic() + seconds
        while not self._stopped and (left := deadline - time.monotonic()) > 0:
            select.select([self._wakes], [], [], min(left, UP_POLL_SECONDS))
            if until_over and self._is_over():
                return


def _environment() -> dict[str, str]:
    """Ours, without what could put a question on somebody's screen."""
    dropped = ("SSH_ASKPASS", "DISPLAY", "WAYLAND_DISPLAY")
    return {name: value for name, value in os.environ.items() if name not in dropped} | {"SSH_ASKPASS_REQUIRE": "never"}


def _end(ssh: "subprocess.Popen[bytes]") -> None:
    ssh.terminate()
    try:
        ssh.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        ssh.kill()
        ssh.wait()


def _text_since(log: Path, start: int) -> str:
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - LOG_TAIL_BYTES))
        return file.read().decode("utf-8", "replace")
    return ""


def _now_ms() -> int:
    return int(time.time() * 1000)


def main() -> None:
    path = Path(sys.argv[1])
    forward = read_forward(path)
    if forward is None:
        sys.exit(f"there is no forward in {path}")
    Supervisor(path, forward).run()


if __name__ == "__main__":
    main()
