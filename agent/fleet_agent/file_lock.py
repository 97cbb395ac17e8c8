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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno in READ_ONLY_ERRNOS:
            raise not_writable(path.parent, error.strerror or str(error)) from error
        raise
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if cancelled.wait(POLL_SECONDS):
                    raise Stopped from None
        yield
    finally:
        os.close(descriptor)
