"""A lock that a file names: one process at a time, released with the process, however it ends."""

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from fleet_agent.jobs.errors import READ_ONLY_ERRNOS, Stopped, not_writable

POLL_SECONDS = 0.25


@contextlib.contextmanager
def file_lock(path: Path, cancelled: threading.Event, mode: int = 0o600) -> Iterator[None]:
    """Holds flock on `path`, created with `mode` where missing. Blocks: call it in a thread.

    Raises Stopped once `cancelled` is set, JobProblem "not-writable" where the file cannot be made.
    """
    while True:
        with try_file_lock(path, mode) as ours:
            if ours:
                yield
                return
        if cancelled.wait(POLL_SECONDS):
            raise Stopped from None


@contextlib.contextmanager
def try_file_lock(path: Path, mode: int = 0o600) -> Iterator[bool]:
    """Yields whether `path` is ours now; it is until the end of the block. Raises JobProblem "not-writable"."""
    descriptor = _lock(path, mode)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(path: Path, mode: int) -> int | None:
    """The descriptor of the locked file, None while another process holds it.

    Who holds a lock may remove its file; who waited for that file then holds a lock on nothing, and takes the new one.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
        except OSError as error:
            if error.errno in READ_ONLY_ERRNOS:
                raise not_writable(path.parent, error.strerror or str(error)) from error
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _names(path, descriptor):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _names(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
