"""Which worker gets which tests, and when: the scheduler against workers that run what they are sent."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("xdist")

from support.parallel import ALONE_FILES, LAB, LAB_OF_MISHAPS, MOST_WORKERS, SharedOut, workers_for

ROOT = Path(__file__).parents[2]
QUIET, OTHER = ALONE_FILES[:2]


class Worker:
    """Keeps what it is sent; like a real one it begins its last test only once it is told that no other comes."""

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.queue: list[int] = []
        self.shutting_down = False

    def send_runtest_some(self, indices: list[int]) -> None:
        self.queue += indices

    def shutdown(self) -> None:
        self.shutting_down = True

    @property
    def can_run(self) -> bool:
        return len(self.queue) > (0 if self.shutting_down else 1)


def run_all(collection: list[str], worker_count: int) -> list[tuple[str, str, frozenset[str]]]:
    """(test, its worker, the workers that were there), in the order of running; the last worker has the last turn."""
    config: Any = SimpleNamespace(
        option=SimpleNamespace(loadscopereorder=True), getvalue=lambda _: [f"{worker_count}*popen"]
    )
    scheduler = SharedOut(config)
    workers = [Worker(f"gw{number}") for number in range(worker_count)]
    for worker in workers:
        scheduler.add_node(worker)
    for worker in workers:
        scheduler.add_node_collection(worker, collection)
    scheduler.schedule()
    workers = [worker for worker in workers if worker in scheduler.nodes]
    ran = []
    while workers:
        able = [worker for worker in workers if worker.can_run]
        if not able:
            gone = next((one for one in workers if one.shutting_down and not one.queue), None)
            assert gone is not None, "every worker waits for another one"
            workers.remove(gone)
            scheduler.remove_node(gone)
            continue
        worker = able[0]
        index = worker.queue.pop(0)
        ran.append((collection[index], worker.gateway.id, frozenset(one.gateway.id for one in workers)))
        scheduler.mark_test_complete(worker, index)
    assert scheduler.tests_finished
    return ran


def names_in(file: str, count: int) -> list[str]:
    return [f"{file}::test_{number}" for number in range(count)]


@pytest.mark.parametrize("worker_count", [1, 2, 3, 8])
@pytest.mark.parametrize("counts", [(5, 1, 3, 2), (1, 1, 1, 1), (1, 9, 1, 1), (2, 2)])
def test_each_test_runs_once_on_its_files_worker_and_the_quiet_ones_run_alone(
    worker_count: int, counts: tuple[int, ...]
) -> None:
    ordinary = [test for number, count in enumerate(counts) for test in names_in(f"tests/a/test_{number}.py", count)]
    quiet = names_in(QUIET, 2) + names_in(OTHER, 1)
    ran = run_all([*quiet, *ordinary], worker_count)
    assert sorted(test for test, _, _ in ran) == sorted(quiet + ordinary)
    assert [test for test, _, _ in ran[-len(quiet) :]] == quiet
    assert all(len(present) == 1 for test, _, present in ran if test in quiet)
    for number in range(len(counts)):
        assert len({worker for test, worker, _ in ran if test.startswith(f"tests/a/test_{number}.py")}) == 1


def test_only_quiet_ones_run_on_one_worker() -> None:
    assert len({worker for _, worker, _ in run_all(names_in(QUIET, 3) + names_in(OTHER, 3), 4)}) == 1


def test_the_end_to_end_tests_take_two_labs_and_others_run_meanwhile() -> None:
    mishaps = [test for file in LAB_OF_MISHAPS for test in names_in(file, 2)]
    others = names_in(f"{LAB}test_a.py", 2) + names_in(f"{LAB}test_b.py", 2)
    ran = run_all([*mishaps, *others, *names_in("tests/a/test_c.py", 3)], 3)
    homes = [{worker for test, worker, _ in ran if test in lab} for lab in (mishaps, others)]
    assert [len(home) for home in homes] == [1, 1] and homes[0] != homes[1]
    assert len({worker for _, worker, _ in ran}) == 3


def test_a_file_by_itself_needs_no_worker(tmp_path: Path) -> None:
    file = tmp_path / "test_x.py"
    file.touch()
    assert workers_for([f"{file}::test_a", str(file)]) == 0
    assert 2 <= workers_for([str(tmp_path)]) <= MOST_WORKERS
    assert workers_for([]) >= 2


def test_the_files_that_are_named_are_there() -> None:
    assert [file for file in (*ALONE_FILES, *LAB_OF_MISHAPS) if not (ROOT / file).is_file()] == []
