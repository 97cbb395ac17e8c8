"""Hosts that share a cache are one node of the chain: one fetches, and another one of them where that one is lost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from fleet_controller.distributing import messages
from fleet_controller.distributing.messages import order_line
from fleet_controller.distributing.model import Member
from fleet_controller.operations.pull_node import PullNode
from fleet_controller.operations.pull_telling import PullTelling

# A host that does not answer the controller, and that no other host serves, is lost to the pull for now.
LOST_SECONDS = 10.0
# Relays tell twice a second whom they serve.
SERVING_SECONDS = 3.0


class PullCaches:
    """Who fetches into which cache."""

    def __init__(self, nodes: Mapping[str, PullNode], telling: PullTelling) -> None:
        self._nodes = nodes
        self._telling = telling
        self._tried: set[str] = set()

    def is_lost(self, node: PullNode) -> bool:
        """Its job has failed; or the host does not answer, and nobody serves it."""
        now = time.monotonic()
        if node.problem is not None:
            return True
        if node.away is None or now - node.away_since < LOST_SECONDS:
            return False
        return not any(
            node.name in other.serves and now - other.heard_at < SERVING_SECONDS for other in self._nodes.values()
        )

    def heir(self, node: PullNode) -> PullNode | None:
        """Who fetches in its place, should it be lost; each host is tried once."""
        heirs = (other for other in self._sharing(node) if other.name not in self._tried)
        return next(heirs, None)

    def hand_over(self) -> list[PullNode]:
        """Begins with another host where the one that fetched is lost; those that were."""
        lost = [node for node in self._nodes.values() if node.fetches and not node.complete and self.is_lost(node)]
        return [node for node in lost if self._handed_over(node)]

    def _handed_over(self, node: PullNode) -> bool:
        heir = self.heir(node)
        self._tried.add(node.name)
        if heir is None or node.told_done:
            return False
        for other in (node, *self._sharing(node)):
            other.fetcher = heir.name
        node.problem = None  # it has the files when its heir has them
        heir.tally.inherit(node.tally)
        heir.begin_again()
        self._telling.show(heir, f"goes on in place of {node.host}, whose cache it shares")
        return True

    def failed(self, node: PullNode) -> None:
        """Nobody is left who could fetch into its cache."""
        for other in (node, *self._sharing(node)):
            other.problem = other.problem or node.problem
            self._telling.failed(other)

    def join(self, node: PullNode) -> bool:
        """Whether a host that came late shares the cache of one that fetches already: then it has nothing to do."""
        cache = node.candidate.cache
        for other in self._nodes.values():
            if other is not node and other.fetches and cache and other.candidate.cache == cache:
                node.fetcher = other.name
                dismiss(node)
                self._telling.show(node, f"shares its cache with {other.host}, which fetches")
                if other.complete:
                    self._telling.of(other, other.completion)
                return True
        return False

    def _sharing(self, node: PullNode) -> list[PullNode]:
        return [other for other in self._nodes.values() if other is not node and other.fetcher == node.name]


def dismiss(node: PullNode) -> None:
    """Its relay ends, once: its host has nothing to fetch itself."""
    if not node.dismissed:
        node.dismissed = True
        node.link.order(order_line(messages.Stop()))


def fetchers_again(members: Sequence[Member], there: Sequence[str], gone: frozenset[str]) -> dict[str, str]:
    """host -> who fetches for it, from what another controller had decided. there: those that listened then."""
    found = {}
    for member in members:
        group = [one.name for one in members if member.cache and one.cache == member.cache] or [member.name]
        known = [name for name in group if name in there and name not in gone]
        left = [name for name in group if name not in gone]
        found[member.name] = (known or left or group)[0]
    return found
