"""How pytest-xdist's workers share the tests out. Most tests wait for processes: several at once gain on any machine.

- The tests of a file stay together and in their order: what its module fixtures start is started once.
- The end-to-end tests stay together in two halves, each with one lab for all of it.
- Files that take long come first, so that the workers end at about the same time.
- What needs the machine for itself comes last, when all other workers have gone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

LAB = "tests/end_to_end/"
LAB_OF_MISHAPS = (f"{LAB}test_bad_luck.py", f"{LAB}test_kills.py")  # about half of them
LONG_MARKS = ("slow", "namespaces", "llama_cpp")  # what drives real servers takes its time
# Each with the reason: what is beside it would change what it shows.
ALONE_FILES = (
    # Benches with as many threads as there are cores, which wait for each other without sleeping; and the first one's
    # figures are compared.
    "tests/controller/operations/test_golden_bench.py",
    "tests/controller/operations/test_bench_for_real.py",
    # A stranger must get his share of a CPU to be noticed.
    "tests/agent/measuring/test_bench_beside_a_stranger.py",
    # Sixteen agents at once, one of which must die before its turn comes.
    "tests/end_to_end/test_rollout_of_sixteen.py",
)
ALONE = "alone"
WORKERS_PER_CPU = 2
MOST_WORKERS = 8
FEWEST_AHEAD = 1  # a worker begins its last test only when it has another one or knows that none comes


def workers_for(arguments: Sequence[str]) -> int:
    """How many workers `-n auto` means: none for a single file, whose tests stay together anyway."""
    files = {Path(argument.split("::")[0]) for argument in arguments}
    if len(files) == 1 and all(file.is_file() for file in files):
        return 0
    return min(WORKERS_PER_CPU * (os.cpu_count() or 1), MOST_WORKERS)


def long_ones_first(items: list[pytest.Item]) -> None:
    """Sorts by file: the lab's first, then those with a test that has one of LONG_MARKS; else as they were."""
    long = {item.path for item in items if any(map(item.get_closest_marker, LONG_MARKS))}
    items.sort(key=lambda item: (not item.nodeid.startswith(LAB), item.path not in long))


class SharedOut(LoadScopeScheduling):  # type: ignore[misc]  # xdist tells no types
    """LoadScopeScheduling with scopes of our own, one of which waits until a single worker is left."""

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # the order of the collection counts

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        if file in ALONE_FILES:
            return ALONE
        if file.startswith(LAB):
            return f"{LAB}mishaps" if file in LAB_OF_MISHAPS else f"{LAB}uses"
        return file

    def _assign_work_unit(self, node: Any) -> None:
        if ALONE in self.workqueue:
            self.workqueue.move_to_end(ALONE)
        if not self._only_alone_is_left or len(self.nodes) == 1:
            super()._assign_work_unit(node)

    def _reschedule(self, node: Any) -> None:
        if not self._only_alone_is_left or len(self.nodes) == 1:
            if not self.workqueue or self._pending_of(self.assigned_work[node]) <= FEWEST_AHEAD:
                super()._reschedule(node)
        elif not node.shutting_down and any(not other.shutting_down for other in self.nodes if other is not node):
            node.shutdown()  # it ends what it has

    def remove_node(self, node: Any) -> str | None:
        crashed: str | None = super().remove_node(node)
        for other in self.nodes:
            self._reschedule(other)
        return crashed

    @property
    def _only_alone_is_left(self) -> bool:
        return list(self.workqueue) == [ALONE]
