"""Bytes a second, shared by all links of a node."""

import threading
import time

# What may go out at once after a pause: so much that short waits cost no rate, so little that a link is not flooded.
BURST_SECONDS = 0.1
# What goes at once where a rate is kept.
LIMITED_BLOCK_BYTES = 64 << 10


class RateLimit:
    """A bucket of tokens; take() sleeps until it may go on. 0 bytes a second is no limit."""

    def __init__(self, bytes_per_second: int) -> None:
        self._lock = threading.Lock()
        self._rate = bytes_per_second
        self._free_at = 0.0

    @property
    def limited(self) -> bool:
        return self._rate > 0

    def change(self, bytes_per_second: int) -> None:
        with self._lock:
            self._rate = bytes_per_second
            self._free_at = 0.0

    def take(self, count: int) -> None:
        """Waits as long as these bytes have to wait."""
        if self._rate <= 0:
            return
        with self._lock:
            if self._rate <= 0:
                return
            now = time.monotonic()
            self._free_at = max(self._free_at, now - BURST_SECONDS) + count / self._rate
            wait = self._free_at - now
        if wait > 0:
            time.sleep(wait)
