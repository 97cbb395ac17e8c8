"""Who says that he has lost whom, and whose fault it is: that of who is complained of, the complainer's, nobody's."""

from dataclasses import dataclass
from enum import Enum

from fleet_controller.distributing import messages

# A relay tells its progress twice a second; who was not heard for that long, or got nothing meanwhile, may be cut off.
HEARD_SECONDS = 1.2
FLOWING_SECONDS = 1.0
BELIEVED_AT_ONCE = frozenset({"silent", "unreachable"})
# Complaints that lie further apart have nothing to do with each other.
COMPLAINT_SECONDS = 10.0
# Whoever has begun anew has another port, and those that fetch from it are being told of it.
NEW_SECONDS = 2.0
# Who complains of a head for that long, alone, would never end: another head may be one that he reaches.
PERSISTENT_SECONDS = 10.0


class Verdict(Enum):
    NOBODY = "nobody"
    SERVER = "who is complained of"
    COMPLAINER = "the complainer, as far as anybody knows"


@dataclass
class _Streak:
    first_seconds: float
    last_seconds: float
    count: int = 1


class Complaints:
    """Times are monotonic seconds. What is not known after a controller's own restart speaks against nobody."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._heard: dict[str, float] = {}
        self._stalled: dict[str, float] = {}
        self._new_since: dict[str, float] = {}
        self._streaks: dict[tuple[str, str, str], _Streak] = {}  # (complainer, of whom, purpose)

    def heard(self, name: str, event: messages.Event, now: float) -> None:
        self._began = now if self._began is None else self._began
        self._heard[name] = now
        if isinstance(event, messages.Progress):
            self._stalled[name] = event.stalled_seconds
        elif isinstance(event, messages.Listening):
            self._new_since[name] = now  # what was said of its former process counts no more
            self._streaks = {key: streak for key, streak in self._streaks.items() if key[1] != name}

    def judge(self, name: str, event: messages.PeerLost, is_head: bool, now: float) -> Verdict:
        """One complaint is enough where the network itself says so and nothing speaks against it.

        Else there is a second chance: the complainer dials again by itself, and a process that has ended is told
        of by its agent. A head holds bytes that nobody else has: of one that is heard a second host must complain, too,
        unless the first one does not cease.
        """
        if now - self._new_since.get(event.peer, -1e9) < NEW_SECONDS:
            return Verdict.NOBODY
        streak = self._complain((name, event.peer, event.purpose), now)
        if event.reason in BELIEVED_AT_ONCE and not self._is_well(event.peer, is_head, now):
            return Verdict.SERVER
        if streak.count < 2:
            return Verdict.NOBODY
        persistent = now - streak.first_seconds >= PERSISTENT_SECONDS
        if not is_head or persistent or not self._is_heard(event.peer, now) or self._complainers(event.peer, now) > 1:
            return Verdict.SERVER
        return Verdict.COMPLAINER

    def _complain(self, key: tuple[str, str, str], now: float) -> _Streak:
        streak = self._streaks.get(key)
        if streak is None or now - streak.last_seconds > COMPLAINT_SECONDS:
            streak = self._streaks[key] = _Streak(now, now)
        else:
            streak.last_seconds, streak.count = now, streak.count + 1
        return streak

    def _is_heard(self, peer: str, now: float) -> bool:
        return now - self._heard.get(peer, self._began or now) <= HEARD_SECONDS

    def _is_well(self, peer: str, is_head: bool, now: float) -> bool:
        """Whether it is heard and gets on; that a head's source stalls says nothing of its link to the others."""
        return self._is_heard(peer, now) and (is_head or self._stalled.get(peer, 0.0) <= FLOWING_SECONDS)

    def _complainers(self, peer: str, now: float) -> int:
        recent = (key for key, streak in self._streaks.items() if now - streak.last_seconds <= COMPLAINT_SECONDS)
        return len({key[0] for key in recent if key[1] == peer})
