"""One host of a pull as far as the one who carries it out knows it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from fleet_controller.distributing import messages
from fleet_controller.domain.base import Problem
from fleet_controller.operations.pull_link import PullLink
from fleet_controller.pulling.beginning import Candidate
from fleet_controller.pulling.tally import HostTally


@dataclass
class PullNode:
    """`fetcher`: who fetches into the cache that they share, itself mostly; "" for nobody knows whom. `ended`: its job
    will tell nothing more. `certified_at` is in Unix seconds, 0 where another controller gave its certificate; other
    moments are monotonic seconds.
    """

    link: PullLink
    candidate: Candidate
    tally: HostTally = field(default_factory=HostTally)
    prepared: bool = False
    listening: messages.Listening | None = None
    relay_ended: bool = False
    complete: bool = False
    snapshot: str = ""
    away: Problem | None = None
    caught_up: bool = False
    ended: bool = False
    problem: Problem | None = None
    fetcher: str = ""
    has_credentials: bool = False
    certified_at: float = 0.0
    told_done: bool = False
    dismissed: bool = False  # another host fetches into its cache, and its own relay was told to end
    shown_at: float = 0.0
    heard_at: float = -1e9
    away_since: float = 0.0
    serves: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """That of its certificate."""
        return self.candidate.name

    @property
    def host(self) -> str:
        return self.link.host.name

    @property
    def fetches(self) -> bool:
        return self.fetcher == self.name

    @property
    def open(self) -> bool:
        """Whether something may still come of it soon."""
        return self.problem is None and self.away is None and not self.ended

    @property
    def listens(self) -> bool:
        """Whether its relay runs, as far as we know."""
        return self.open and self.listening is not None and not self.relay_ended

    def begin_again(self) -> None:
        """It fetches now, by another job than the one that was told to end."""
        self.prepared = self.relay_ended = self.complete = self.caught_up = self.ended = False
        self.has_credentials = self.dismissed = False
        self.listening = self.away = self.problem = None
        self.link.start_again()

    @property
    def completion(self) -> messages.Complete:
        return messages.Complete(snapshot=self.snapshot, fetched_bytes=self.tally.fetched_bytes)


def labels_of(hosts: Sequence[str]) -> dict[str, str]:
    """A label of letters, digits and dashes for each host, different for each."""
    found: dict[str, str] = {}
    for host in hosts:
        plain = re.sub(r"[^a-z0-9]+", "-", host.lower()).strip("-")[:40].strip("-") or "host"
        label, number = plain, 2
        while label in found.values():
            label, number = f"{plain}-{number}", number + 1
        found[host] = label
    return found
