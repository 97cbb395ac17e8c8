"""What a pull shows: a line for each host, one for all of them together, and each change of the chain in words."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from fleet_controller.distributing import messages
from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.pulls import PlannedPull
from fleet_controller.domain.sizes import gibibytes
from fleet_controller.operations.pull_node import PullNode
from fleet_controller.pulling.tally import FleetTally

SHOWN_EVERY_SECONDS = 0.5
ALL = "all"  # no host can have that name


class PullTelling:
    """Collects events; `drained` hands them on. Each host's last one is told once."""

    def __init__(self, pull: PlannedPull, nodes: Mapping[str, PullNode]) -> None:
        self._pull = pull
        self._nodes = nodes
        self._out: list[HostEvent] = []
        self._began = time.monotonic()
        self._all_shown_at = 0.0
        self._reasons = 0
        source = pull.source
        self._origin = "from a folder" if source.folder or source.served_folder else "from the internet"

    def drained(self) -> list[HostEvent]:
        out, self._out = self._out, []
        return out

    def add(self, event: HostEvent) -> None:
        self._out.append(event)

    def show(self, node: PullNode, message: str) -> None:
        self.add(HostEvent(host=node.host, stage="pull", message=message))

    def of(self, node: PullNode, event: messages.Event) -> None:
        """What a relay told, where that is worth showing."""
        if isinstance(event, messages.Complete):
            self.done(node)
            for other in self._nodes.values():
                if other.fetcher == node.name:
                    other.snapshot = node.snapshot
                    self.done(other)
        elif isinstance(event, messages.Note):
            self.show(node, event.message)
        elif isinstance(event, messages.Progress) and not node.told_done:
            now = time.monotonic()
            if now - node.shown_at >= SHOWN_EVERY_SECONDS:
                node.shown_at = now
                self._progress(node)

    def _progress(self, node: PullNode) -> None:
        tally = node.tally
        upstream = self._nodes.get(tally.upstream)
        origin = self._origin if tally.is_head else f"from {upstream.host}" if upstream else "waiting"
        rate = f", {tally.bytes_per_second / 1e6:.1f} MB/s" if tally.bytes_per_second else ""
        self._bytes(node.host, f"{origin}{rate}", tally.verified_bytes, self._pull.files.total_bytes)

    def _bytes(self, host: str, message: str, done: int, total: int) -> None:
        self.add(HostEvent(host=host, stage="pull", message=message, done_units=done, total_units=total, unit="bytes"))

    def done(self, node: PullNode) -> None:
        if node.told_done:
            return
        node.told_done = True
        fetched = node.tally.fetched_bytes
        if not node.fetches:
            other = f" with {self._nodes[node.fetcher].host}" if node.fetcher else ""
            message = f"verified: the files are in the cache that it shares{other}"
        elif fetched:
            message = f"verified: {gibibytes(self._pull.files.total_bytes)}, {gibibytes(fetched)} of it fetched"
        else:
            message = "has all files"
        result = {
            "snapshot": node.snapshot,
            "total_bytes": self._pull.files.total_bytes,
            "source_bytes": node.tally.moved("source_bytes"),
            "lab_bytes": node.tally.moved("received_bytes"),
            "seconds": self._seconds,
        }
        self._end(node.host, message, result, changed=fetched > 0)

    def failed(self, node: PullNode) -> None:
        if not node.told_done:
            node.told_done = True
            self.add(HostEvent(host=node.host, stage="pull", done=True, problem=node.problem))

    def _end(self, host: str, message: str, result: dict[str, object], changed: bool) -> None:
        text = json.dumps(result)
        self.add(HostEvent(host=host, stage="pull", message=message, done=True, changed=changed, result_json=text))

    @property
    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 3)

    # -- all together -----------------------------------------------------------------------------------------

    def skip_reasons(self, known: int) -> None:
        """Those that another controller has told."""
        self._reasons = known

    def reasons(self, reasons: tuple[str, ...]) -> None:
        for reason in reasons[self._reasons :]:
            self.add(HostEvent(host=ALL, stage="chain", message=self._with_hosts(reason)))
        self._reasons = len(reasons)

    def _with_hosts(self, text: str) -> str:
        """Hosts by their own names, not those of their certificates."""
        for name, node in self._nodes.items():
            text = text.replace(name, node.host)
        return text

    def _fleet(self) -> FleetTally:
        tallies = [node.tally for node in self._nodes.values() if node.fetches]
        return FleetTally.of(tallies, self._pull.files.total_bytes)

    def all(self) -> None:
        """Now and then, once it is known of every host how far it is."""
        now = time.monotonic()
        unknown = any(node.open and not node.caught_up for node in self._nodes.values())
        if unknown or now - self._all_shown_at < SHOWN_EVERY_SECONDS:
            return
        self._all_shown_at = now
        fleet = self._fleet()
        self._bytes(ALL, fleet.in_words(self._origin), fleet.verified_bytes, fleet.total_bytes)

    def summary(self) -> None:
        fleet, files = self._fleet(), self._pull.files
        result = {
            "pull_id": self._pull.pull_id,
            "repository": files.repository,
            "commit": files.commit,
            "source_bytes": fleet.source_bytes,
            "lab_bytes": fleet.lab_bytes,
            "total_bytes": files.total_bytes,
            "seconds": self._seconds,
        }
        self._end(ALL, f"{files.repository}: {fleet.in_words(self._origin)}", result, changed=False)
