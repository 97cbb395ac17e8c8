"""When a pull is over for its hosts, and how it ends for those that will not have the files."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from fleet_controller.distributing.conductor import Conductor, ConductorState, Instruction
from fleet_controller.domain.base import Problem
from fleet_controller.operations.pull_caches import PullCaches
from fleet_controller.operations.pull_node import PullNode
from fleet_controller.operations.pull_sources import PullSources
from fleet_controller.operations.pull_telling import PullTelling

# Once all others are done: how long hosts may be away, and come back.
CATCH_UP_SECONDS = 30.0


class PullEnding:
    """Asked again and again."""

    def __init__(
        self, nodes: Mapping[str, PullNode], caches: PullCaches, sources: PullSources, telling: PullTelling
    ) -> None:
        self._nodes = nodes
        self._caches = caches
        self._sources = sources
        self._telling = telling
        self._finished_since: float | None = None

    def judge(self, conductor: Conductor) -> Sequence[Instruction]:
        """What follows where the chain has come to its end, or cannot come to it as it is."""
        state = conductor.state
        if state.topology is None and state.reasons:
            return self._without_anybody(conductor)
        if state.stuck:
            if self._sources.try_next(conductor):
                return conductor.again()
            remedy = "set HF_ENDPOINT to a hub that the hosts reach, or name a host that has it: --from host:NAME"
            self.fail_all(Problem(code="source-failed", message=state.stuck, remedy=remedy))
        elif self._is_finished(state):
            self._all_there_are_done()
        else:
            self._finished_since = None
        return ()

    def _without_anybody(self, conductor: Conductor) -> Sequence[Instruction]:
        """Nobody is left in the chain; but a host may come that shares a cache with one that was."""
        state = conductor.state
        coming = [node for node in self._nodes.values() if node.fetches and node.open and not node.complete]
        there = [node.name for node in coming if node.listens and node.name in state.peers]
        if there:
            peers = {name: peer for name, peer in state.peers.items() if name in there}
            update = {"peers": peers, "head": there[0], "gone": state.gone - set(there)}
            conductor.state = state.model_copy(update=update)
            self._sources.serve_again(conductor)
            return conductor.begin()
        if not coming:
            self.fail_all(Problem(code="nobody-left", message=state.reasons[-2], remedy="repeat the command"))
        return ()

    def _is_finished(self, state: ConductorState) -> bool:
        """Whether all have all files that are not lost."""
        if state.topology is None or state.finished:
            return state.finished
        awaited = [name for name in state.topology.names if not self._is_lost(name)]
        return bool(awaited) and set(awaited) <= state.complete

    def _is_lost(self, name: str) -> bool:
        return name not in self._nodes or self._caches.is_lost(self._nodes[name])

    def _all_there_are_done(self) -> None:
        self._finished_since = self._finished_since or time.monotonic()
        lost = Problem(code="host-unreachable", message="it went away", remedy="repeat the command")
        for node in self._nodes.values():
            if not node.fetcher:
                self._telling.done(node)
            elif not node.told_done and time.monotonic() - self._missed_since(node) > CATCH_UP_SECONDS:
                node.problem = node.away or lost
                self._telling.failed(node)

    def _missed_since(self, node: PullNode) -> float:
        finished = self._finished_since or time.monotonic()
        return finished if node.away is None else min(finished, node.away_since)

    def fail_all(self, problem: Problem) -> None:
        """Those that are not done by now."""
        for node in self._nodes.values():
            if not node.told_done:
                node.problem = node.problem or problem
                self._telling.failed(node)
