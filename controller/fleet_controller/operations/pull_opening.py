"""The stages before the chain begins: prepared, certified, listening, asked whom they reach."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence

from fleet_controller.distributing import messages
from fleet_controller.distributing.messages import order_line
from fleet_controller.domain.pulls import PlannedPull
from fleet_controller.operations.pull_caches import dismiss
from fleet_controller.operations.pull_feeds import PullFeeds
from fleet_controller.operations.pull_node import PullNode
from fleet_controller.operations.pull_telling import PullTelling
from fleet_controller.pki.keeper import PULL_DAYS, IdentityKeeper
from fleet_controller.pulling.beginning import cannot_dial, fetchers

# How long the chain's beginning waits for hosts that are slow to answer; who comes later hangs on the tail.
PREPARE_SECONDS = 30.0
LISTEN_SECONDS = 15.0
PROBE_SECONDS = 6.0
# Of what is fed through an OpenSSH child, which costs the controller's machine many times what direct bytes cost.
FED_BYTES_PER_SECOND = 20_000_000


class PullOpening:
    """Asked again and again until it has somebody to begin with."""

    def __init__(
        self, pull: PlannedPull, nodes: Mapping[str, PullNode], identities: IdentityKeeper, telling: PullTelling
    ) -> None:
        self._pull = pull
        self._nodes = nodes
        self._identities = identities
        self._telling = telling
        self._since = time.monotonic()
        self._probed = False

    def ready(self) -> list[PullNode]:
        """Those that the chain begins with; empty as long as it is worth waiting. Only then is it known who can stand
        where.
        """
        there = [node for node in self._nodes.values() if node.open]
        if not there or (any(not node.prepared for node in there) and not self._waited(PREPARE_SECONDS)):
            return []
        chosen = self._chosen([node for node in there if node.prepared])
        if any(not node.has_credentials for node in chosen):
            for node in chosen:
                self.give_credentials(node)
            self._since = time.monotonic()
        if any(node.listening is None for node in chosen) and not self._waited(LISTEN_SECONDS):
            return []
        chosen = [node for node in chosen if node.listening is not None]
        if not self._probed and len({node.candidate.address for node in chosen}) > 1:
            self._ask_whom_they_reach(chosen)
        if self._probed and any(n.candidate.reached is None for n in chosen) and not self._waited(PROBE_SECONDS):
            return []
        return chosen

    def _waited(self, seconds: float) -> bool:
        return time.monotonic() - self._since > seconds

    def _chosen(self, there: Sequence[PullNode]) -> list[PullNode]:
        """Of hosts that share a cache one; what the others hold is what it holds."""
        head = next((node.name for node in there if node.host == self._pull.source.host), "")
        if not any(node.has_credentials for node in there):
            fetcher_of = fetchers([node.candidate for node in there], head)
            for node in there:
                node.fetcher = fetcher_of[node.name]
        for node in there:
            if not node.fetches:
                dismiss(node)
                node.ended = True
                self._telling.show(node, f"shares its cache with {self._nodes[node.fetcher].host}, which fetches")
        return [node for node in there if node.fetches]

    def give_credentials(self, node: PullNode) -> None:
        signed = self._identities.sign_pull(node.name)
        node.link.order("", (signed.authority_pem, signed.certificate_pem, signed.key_pem))
        node.has_credentials, node.certified_at = True, time.time()

    def renew_credentials(self) -> None:
        """Those whose certificate is half spent get another one: links that are up stay, new ones begin with it."""
        spent = time.time() - PULL_DAYS * 24 * 3600 / 2
        for node in self._nodes.values():
            if node.has_credentials and node.listens and node.fetches and node.certified_at < spent:
                self.give_credentials(node)

    def _ask_whom_they_reach(self, chosen: Sequence[PullNode]) -> None:
        self._probed, self._since = True, time.monotonic()
        for node in chosen:
            peers = [
                {"name": other.name, "address": other.listening.address, "port": other.listening.port}
                for other in chosen
                if other is not node and other.listening is not None
            ]
            node.link.order(json.dumps({"order": "probe", "peers": peers}))

    def feed_islands(self, chosen: Sequence[PullNode], feeds: PullFeeds) -> bool:
        """Hosts that reach no other one get their bytes through ssh; whether there is one."""
        rate = min(self._pull.rate_bytes_per_second or FED_BYTES_PER_SECOND, FED_BYTES_PER_SECOND)
        candidates = [node.candidate for node in chosen]
        for node in chosen:
            if cannot_dial(node.candidate, candidates):
                feeds.feed(node.name)
                node.link.order(order_line(messages.Limits(download_bytes_per_second=rate)))
                self._telling.show(node, f"reaches no other host: fed through ssh, at {rate / 1e6:.0f} MB/s at most")
        return any(feeds.is_fed(node.name) for node in chosen)
