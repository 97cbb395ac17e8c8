"""Rollouts in the database: whole, in order, and carried out by one process."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_controller.domain.base import Problem
from fleet_controller.domain.rollouts import Before, HostPhase, Rollout, RolloutHost, RolloutState, Strategy
from fleet_controller.domain.services import ServiceSpec
from fleet_controller.rolling.store import RolloutStore
from fleet_controller.state import StateDatabase

FRESH = Rollout(
    number=0, plan_id="p1", title="deploy m", service="m", strategy=Strategy(canaries=("a",), wave_percent=25),
    hosts=(RolloutHost(host="b", wave=1), RolloutHost(host="a", wave=0)),
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RolloutStore]:
    database = StateDatabase(tmp_path / "fleet.db")
    yield RolloutStore(database)
    database.close()


def test_what_is_kept_comes_back_as_it_was(store: RolloutStore, tmp_path: Path) -> None:
    made = store.create(FRESH, '{"plan": 1}')
    assert (made.number, store.plan(1)) == (1, '{"plan": 1}')
    before = Before(spec=ServiceSpec(name="m", port=8080, arguments=("-m", "x")), running=True)
    changed = RolloutHost(
        host="a",
        wave=0,
        phase=HostPhase.FAILED,
        before=before,
        problem=Problem(code="c", message="m"),
        changed_unix_ms=5,
    )
    store.set_host(1, changed)
    store.set_state(1, RolloutState.STOPPED, "canary a failed")
    again = StateDatabase(tmp_path / "fleet.db")
    found = RolloutStore(again).get(1)
    again.close()
    assert found is not None
    assert found.hosts == (FRESH.hosts[0], changed)
    assert (found.state, found.reason) == (RolloutState.STOPPED, "canary a failed")
    assert found.strategy == FRESH.strategy


def test_one_that_goes_on_with_anothers_hosts_ends_it(store: RolloutStore) -> None:
    first = store.create(FRESH, "")
    second = store.create(FRESH.model_copy(update={"title": "deploy m again"}), "", supersedes=[first])
    assert [one.number for one in store.unfinished()] == [second.number]
    assert [(one.number, one.state) for one in store.newest()] == [
        (2, RolloutState.RUNNING), (1, RolloutState.SUPERSEDED)
    ]  # fmt: skip


def test_one_that_needs_an_undo_of_its_own_is_ended_and_says_by_whom(store: RolloutStore) -> None:
    first = store.create(FRESH, "")
    store.create(FRESH.model_copy(update={"title": "deploy n"}), "", aborts=[first])
    found = store.get(1)
    assert found is not None
    assert (found.state, found.reason) == (RolloutState.ABORTED, "deploy n came after it")


def test_wishes_are_told_once_and_taken_back(store: RolloutStore) -> None:
    store.create(FRESH, "")
    assert store.wanted(1) is None
    store.ask(1, RolloutState.PAUSED)
    assert store.wanted(1) is RolloutState.PAUSED
    store.set_state(1, RolloutState.PAUSED)  # it was done
    assert store.wanted(1) is None


def test_a_dead_process_carries_nothing_out(store: RolloutStore, tmp_path: Path) -> None:
    store.create(FRESH, "")
    code = (
        "import sys, time, pathlib\nfrom fleet_controller.rolling.store import RolloutStore\n"
        "from fleet_controller.state import StateDatabase\n"
        "with RolloutStore(StateDatabase(pathlib.Path(sys.argv[1]))).carrying_out(1) as ours:\n"
        "    print(ours, flush=True)\n    time.sleep(60)\n"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "fleet.db")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert store.is_carried_out(1)
        with store.carrying_out(1) as ours:
            assert not ours
        os.kill(process.pid, signal.SIGKILL)
    assert not store.is_carried_out(1)


def test_somebody_who_only_asks_keeps_nobody_from_beginning(
    store: RolloutStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create(FRESH, "")
    with store.carrying_out(1):
        pass
    asking = (tmp_path / "rollouts" / "1.lock").open("a")
    fcntl.flock(asking, fcntl.LOCK_EX)
    assert store.is_carried_out(1)
    monkeypatch.setattr("fleet_controller.rolling.store.time.sleep", lambda seconds: asking.close())
    with store.carrying_out(1) as ours:
        assert ours


def test_a_database_of_before_has_its_tables_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fleet_controller import state

    monkeypatch.setattr(state, "MIGRATIONS", state.MIGRATIONS[:1])
    old = StateDatabase(tmp_path / "fleet.db")
    old.save_plan("p", "body")
    old.close()
    monkeypatch.undo()
    new = StateDatabase(tmp_path / "fleet.db")
    assert RolloutStore(new).newest() == ()
    assert new.load_plan("p") == "body"
    new.close()
