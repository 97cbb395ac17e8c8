"""When somebody who waits is told so again: for a cause that is new, else every ten seconds."""

import time
from collections.abc import Callable, Collection

REPEAT_SECONDS = 10.0


class Reminder:
    """Remembers what was told. Programs come and go twice a second on a host in use: each is news once a period."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: set[str] = set()
        self._due = 0.0

    def due(self, causes: Collection[str]) -> bool:
        """Whether to tell now that these causes are waited for; then they count as told."""
        now = self._clock()
        if now >= self._due:
            self._told.clear()
        elif self._told.issuperset(causes):
            return False
        self._told.update(causes)
        self._due = now + REPEAT_SECONDS
        return True
