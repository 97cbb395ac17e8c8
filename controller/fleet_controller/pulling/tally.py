"""How far a pull is, from what its relays tell: one figure for each host and for all. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from fleet_controller.distributing import messages
from fleet_controller.domain.sizes import gibibytes

COUNTERS = ("source_bytes", "received_bytes", "sent_bytes")


@dataclass
class HostTally:
    """One host. A relay counts from its own start, so what its predecessors moved is added up."""

    verified_bytes: int = 0
    total_bytes: int = 0
    upstream: str = ""
    is_head: bool = False
    bytes_per_second: float = 0.0
    best_bytes_per_second: float = 0.0
    _now: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    _before: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))

    def hear(self, event: messages.Event) -> None:
        if isinstance(event, messages.Listening):
            self._before = {name: self.moved(name) for name in COUNTERS}
            self._now = dict.fromkeys(COUNTERS, 0)
        elif isinstance(event, messages.Progress):
            self._now = {name: int(getattr(event, name)) for name in COUNTERS}
            self.verified_bytes, self.total_bytes = event.verified_bytes, event.total_bytes
            self.upstream, self.is_head = event.upstream, event.is_head
            self.bytes_per_second = event.bytes_per_second
            self.best_bytes_per_second = max(self.best_bytes_per_second, event.bytes_per_second)
        elif isinstance(event, messages.Complete):
            self.verified_bytes = self.total_bytes or self.verified_bytes
            self._now = {**self._now, **self._at_least(event.fetched_bytes)}

    def _at_least(self, fetched_bytes: int) -> dict[str, int]:
        """The last bytes may have come after the last progress."""
        missing = fetched_bytes - self._now["source_bytes"] - self._now["received_bytes"]
        name = "source_bytes" if self.is_head else "received_bytes"
        return {name: self._now[name] + max(0, missing)}

    def inherit(self, other: HostTally) -> None:
        """What another host moved into the same cache before this one went on in its place."""
        self._before = {name: self._before[name] + other.moved(name) for name in COUNTERS}

    def moved(self, name: str) -> int:
        return self._before[name] + self._now[name]

    @property
    def fetched_bytes(self) -> int:
        return self.moved("source_bytes") + self.moved("received_bytes")


@dataclass(frozen=True)
class FleetTally:
    """All hosts of a pull. source_bytes came from the hub or a folder, lab_bytes from host to host."""

    verified_bytes: int
    total_bytes: int
    source_bytes: int
    lab_bytes: int

    @classmethod
    def of(cls, hosts: list[HostTally], file_bytes: int) -> FleetTally:
        return cls(
            verified_bytes=sum(host.verified_bytes for host in hosts),
            total_bytes=file_bytes * len(hosts),
            source_bytes=sum(host.moved("source_bytes") for host in hosts),
            lab_bytes=sum(host.moved("received_bytes") for host in hosts),
        )

    def in_words(self, origin: str) -> str:
        """As "4.2 GiB from the internet, 12.6 GiB in the lab"."""
        return f"{gibibytes(self.source_bytes)} {origin}, {gibibytes(self.lab_bytes)} in the lab"
