"""What a node's threads count, for its progress events."""

import contextlib
import os
import threading
import time

RATE_SECONDS = 2.0
TASKS = "/proc/self/task"


def _read(path: str) -> bytes:
    """A small file of the kernel's, in three system calls instead of nine."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 256)
    finally:
        os.close(descriptor)


class Counters:
    """Each number has one kind of writer, except `sent`, which all serving threads add to under the lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: list[tuple[float, int]] = []
        self._waits: list[tuple[float, dict[str, float]]] = []
        self.received_bytes = 0
        self.sent_bytes = 0
        self.source_bytes = 0
        self.refused = 0
        self.upstream = ""
        self.last_byte_at = time.monotonic()

    def received(self, count: int) -> None:
        self.received_bytes += count
        self.last_byte_at = time.monotonic()

    def fetched(self, count: int) -> None:
        self.source_bytes += count
        self.last_byte_at = time.monotonic()

    def sent(self, count: int) -> None:
        with self._lock:
            self.sent_bytes += count

    def connected_to(self, name: str) -> None:
        self.upstream = name

    def interrupted(self) -> None:
        self.upstream = ""

    def starved_seconds(self) -> float:
        """How long, within the last two seconds, the thread that waited longest for a processor waited for one.

        From Linux's /proc/<pid>/task/<tid>/schedstat (its second number, nanoseconds); 0 where there is none. Called at
        regular times by one thread.
        """
        now, waited = time.monotonic(), {}
        with contextlib.suppress(OSError), os.scandir(TASKS) as tasks:
            for task in tasks:
                with contextlib.suppress(OSError, ValueError, IndexError):
                    waited[task.name] = int(_read(f"{task.path}/schedstat").split()[1]) / 1e9
        self._waits = [wait for wait in self._waits if now - wait[0] <= RATE_SECONDS] + [(now, waited)]
        before = self._waits[0][1]
        return max((seconds - before.get(task, seconds) for task, seconds in waited.items()), default=0.0)

    def rate(self) -> float:
        """Bytes a second that came in, over the last two seconds. Called at regular times by one thread."""
        now, count = time.monotonic(), self.received_bytes + self.source_bytes
        self._samples = [sample for sample in self._samples if now - sample[0] <= RATE_SECONDS] + [(now, count)]
        first_at, first = self._samples[0]
        return (count - first) / (now - first_at) if now > first_at else 0.0
