"""When a head is followed by another one: not before that one has what it has, where waiting can still save bytes.

The next head goes on at the hub from its own last byte. What the present one holds alone would cross the uplink twice.
"""

from dataclasses import dataclass

# A process that ended is started again by its agent: waited for where it alone holds more than this share of it all.
WORTH_WAITING_SHARE = 0.01
RESTART_SECONDS = 6.0
# A head without a source serves what it has, for longer than that only while somebody gets more of it.
STANDSTILL_SECONDS = 2.0
# All tell twice a second how much they have, and a controller that came back has yet to hear it.
TOLD_SECONDS = 1.5


@dataclass
class _Leaving:
    name: str
    ended: bool
    since_seconds: float
    told: bool = True
    arrived_bytes: int = -1


class Succession:
    """At most one head is on its way out. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._leaving: _Leaving | None = None

    def head_ended(self, name: str, now: float, told: bool) -> None:
        """Its process is no more, says its agent (`told`), or whoever finds nobody there."""
        if self._leaving is not None and self.awaits(name):
            self._leaving.told |= told
        else:
            self._leaving = _Leaving(name, True, now, told)

    def head_lacks_source(self, name: str, now: float) -> None:
        if self._leaving is None or self._leaving.name != name:
            self._leaving = _Leaving(name, False, now)

    def awaits(self, name: str) -> bool:
        """Whether the host's process has ended and may be started again."""
        return self._leaving is not None and self._leaving.name == name and self._leaving.ended

    def has_ended_for_sure(self, name: str) -> bool:
        return self._leaving is not None and self.awaits(name) and self._leaving.told

    def is_leaving(self, name: str) -> bool:
        return self._leaving is not None and self._leaving.name == name

    def settled(self) -> None:
        """It came back, found a source, or was followed."""
        self._leaving = None

    def is_due(self, lacking_bytes: int, arrived_bytes: int, total_bytes: int, known: bool, now: float) -> bool:
        """Whether it is time.

        lacking_bytes: what the head has and its successor has not; known: whether all have told how much;
        arrived_bytes: on all others, and as long as that changes there is hope.
        """
        leaving = self._leaving
        if leaving is None:
            return False
        waited = now - leaving.since_seconds
        if not known and waited < TOLD_SECONDS:
            return False
        if leaving.ended:
            return lacking_bytes <= WORTH_WAITING_SHARE * total_bytes or waited >= RESTART_SECONDS
        if lacking_bytes > 0 and arrived_bytes != leaving.arrived_bytes:
            leaving.arrived_bytes, leaving.since_seconds = arrived_bytes, now
            return False
        return lacking_bytes <= 0 or waited >= STANDSTILL_SECONDS
