"""How long a host may be without any contact before whoever waits for it gives up."""

from __future__ import annotations

import asyncio

from fleet_controller.transport.errors import HostUnreachable, TransportError

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0


class Patience:
    """Counts from the first try that failed; a host that is silent and connected is not away.

    Between two tries it pauses, longer each time.
    """

    def __init__(self, host: str, limit_seconds: float) -> None:
        self._host, self._limit_seconds = host, limit_seconds
        self._lost_at: float | None = None
        self._pause_seconds = FIRST_PAUSE_SECONDS

    def heard(self) -> None:
        """There is contact: all is forgotten."""
        self._lost_at, self._pause_seconds = None, FIRST_PAUSE_SECONDS

    def demand(self, error: TransportError) -> None:
        """A try failed. Raises the error, or HostUnreachable, once there was no contact for the limit."""
        now = asyncio.get_running_loop().time()
        if self._lost_at is None:
            self._lost_at = now
        away_seconds = now - self._lost_at
        if away_seconds < self._limit_seconds:
            return
        if not isinstance(error, HostUnreachable):
            raise error
        message = f"no contact for {max(away_seconds, self._limit_seconds):.0f} s: {error.problem.message}"
        raise HostUnreachable(self._host, message, "repeat the command when it is back; it goes on")

    async def pause(self) -> None:
        """Before the next try; never past the limit by more than a first pause."""
        left_seconds = self._limit_seconds
        if self._lost_at is not None:
            left_seconds -= asyncio.get_running_loop().time() - self._lost_at
        await asyncio.sleep(min(self._pause_seconds, max(left_seconds, FIRST_PAUSE_SECONDS)))
        self._pause_seconds = min(self._pause_seconds * 2, LONGEST_PAUSE_SECONDS)
