"""Where whoever heads the chain takes the bytes from, and where next when that does not do."""

from __future__ import annotations

from collections.abc import Mapping

from fleet_controller.distributing.conductor import Conductor, ConductorState
from fleet_controller.distributing.messages import FolderSource, HubSource
from fleet_controller.domain.pulls import PlannedPull
from fleet_controller.hub.mirrors import data_endpoint, data_revision
from fleet_controller.operations.pull_feeds import PullFeeds
from fleet_controller.operations.pull_node import PullNode

# An empty endpoint would be the host's own HF_ENDPOINT again.
USUAL_HUB = "https://huggingface.co"


class PullSources:
    """The plan's endpoints, the best first; those that no host gets on with are left behind."""

    def __init__(self, pull: PlannedPull, nodes: Mapping[str, PullNode], feeds: PullFeeds) -> None:
        self._source = pull.source
        self._nodes = nodes
        self._feeds = feeds
        self._endpoints = pull.source.endpoints

    def by_host(self, head: str) -> dict[str, HubSource | FolderSource]:
        """Of each host that may come to head the chain; a folder of this machine is handed to `head` only."""
        source = self._source
        if source.served_folder:
            return {head: HubSource(endpoint=self._feeds.serve_folder(head))}
        found: dict[str, HubSource | FolderSource] = {}
        for name, node in self._nodes.items():
            if source.folder and node.host == source.host:
                found[name] = FolderSource(path=source.folder)
            elif self._endpoints:
                found[name] = _hub_source(self._endpoint_for(node), node.link.token_file)
        return found

    def fallback(self) -> HubSource | None:
        return _hub_source(self._endpoints[0]) if self._endpoints else None

    def _endpoint_for(self, node: PullNode) -> str:
        """The host's own mirror where that one has the files, else the best one that is known."""
        own = node.link.host.environment.get("HF_ENDPOINT", "").rstrip("/")
        return own if own and own in self._endpoints else self._endpoints[0]

    def served_again(self, state: ConductorState) -> ConductorState:
        """The folder of this machine for whoever heads the chain now: the server is another one, or the head is."""
        head = state.topology.head if state.topology is not None else state.head
        update = {"sources": self.by_host(head), "failed_sources": {}, "sequence": state.sequence + 1}
        return state.model_copy(update=update)

    def serve_again(self, conductor: Conductor) -> None:
        """Where the folder is one of this machine; every other source is there as before."""
        if self._source.served_folder:
            conductor.state = self.served_again(conductor.state)

    def try_next(self, conductor: Conductor) -> bool:
        """Another source in place of one that no host gets on with; False where there is none.

        Metadata and data of a model may be on different mirrors, and a host may reach one that another does not.
        """
        state = conductor.state
        if self._source.served_folder:
            if state.topology is None or state.topology.head in state.sources:
                return False
            conductor.state = self.served_again(state)
            return True
        if len(self._endpoints) < 2:
            return False
        self._endpoints = self._endpoints[1:]
        reason = f"no host gets on with that hub; trying {self._endpoints[0] or USUAL_HUB}"
        update = {
            "sources": self.by_host(state.head),
            "fallback": self.fallback(),
            "failed_sources": {},
            "sequence": state.sequence + 1,
            "reasons": (*state.reasons, reason),
        }
        conductor.state = state.model_copy(update=update)
        return True


def _hub_source(endpoint: str, token_file: str = "") -> HubSource:
    endpoint = endpoint or USUAL_HUB
    return HubSource(endpoint=data_endpoint(endpoint), token_file=token_file, revision=data_revision(endpoint))
