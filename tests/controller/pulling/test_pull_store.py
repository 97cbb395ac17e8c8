"""Pulls in fleet.db: kept before anything is begun, gone on with by whoever comes next."""

import sqlite3
from pathlib import Path

import pytest

from fleet_controller.distributing.conductor import ConductorState
from fleet_controller.distributing.model import Member
from fleet_controller.domain.pulls import PlannedPull, PulledFiles, PullHost, PullPart, PullSource, PullState
from fleet_controller.operations.pull_link import job_of, pull_of
from fleet_controller.pulling import store as store_module
from fleet_controller.pulling.store import PullStore
from fleet_controller.state import MIGRATIONS, StateDatabase

PULL = PlannedPull(
    pull_id="abc",
    digest="d",
    files=PulledFiles(repository="lab/model", commit="0" * 40),
    source=PullSource(endpoints=("",)),
    hosts=(PullHost(host="a", part=PullPart.FETCH), PullHost(host="b", part=PullPart.HAS)),
)


def test_a_pull_is_kept_with_what_was_decided(tmp_path: Path) -> None:
    database = StateDatabase(tmp_path / "fleet.db")
    store = PullStore(database)
    store.create(PULL)
    store.create(PULL)
    assert store.get("abc") == PULL
    assert store.conductor("abc") is None
    decided = ConductorState(members=(Member(name="a"),), head="a", sequence=7)
    store.save_conductor("abc", decided)
    assert PullStore(StateDatabase(tmp_path / "fleet.db")).conductor("abc") == decided
    assert store.running() == (PULL,)
    store.end("abc", PullState.DONE)
    assert store.running() == ()
    assert [host.host for host in PULL.partners] == ["a"]
    database.close()


def test_one_that_was_stopped_is_not_gone_on_with(tmp_path: Path) -> None:
    database = StateDatabase(tmp_path / "fleet.db")
    store = PullStore(database)
    store.create(PULL)
    store.stop("abc")
    assert (store.running(), store.state("abc")) == ((), PullState.STOPPED)
    assert store.begun_on(PULL.files) == {"a"}
    store.end("abc", PullState.DONE)
    store.stop("abc")  # too late
    assert store.state("abc") is PullState.DONE
    assert store.begun_on(PULL.files) == frozenset()
    database.close()


def test_one_that_somebody_was_at_lately_is_gone_on_with_however_old_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = StateDatabase(tmp_path / "fleet.db")
    store, day = PullStore(database), 24 * 3600 * 1000
    monkeypatch.setattr(store_module, "_now_ms", lambda: 0)
    store.create(PULL)
    monkeypatch.setattr(store_module, "_now_ms", lambda: 6 * day)
    store.touch("abc")
    monkeypatch.setattr(store_module, "_now_ms", lambda: 12 * day)
    assert store.running() == (PULL,)
    monkeypatch.setattr(store_module, "_now_ms", lambda: 14 * day)
    assert store.running() == ()
    database.close()


def test_the_job_of_a_pull_tells_which_pull_it_is_for() -> None:
    assert pull_of(job_of("abc123", "gpu-1")) == "abc123"
    assert pull_of(f"{job_of('abc123', 'gpu-1')}-2") == "abc123"
    assert pull_of("deploy-pull-x") == ""


def test_one_process_carries_a_pull_out(tmp_path: Path) -> None:
    database = StateDatabase(tmp_path / "fleet.db")
    store = PullStore(database)
    with store.carrying_out("abc") as ours, store.carrying_out("abc") as again:
        assert (ours, again) == (True, False)
    with store.carrying_out("abc") as ours:
        assert ours


def test_an_old_database_is_taken_along(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    known = [migration.__name__ for migration in MIGRATIONS].index("_create_pulls")
    with sqlite3.connect(path) as connection:
        for migration in MIGRATIONS[:known]:
            migration(connection)
        connection.execute("INSERT INTO plans VALUES ('p', 1, 'body')")
        connection.execute(f"PRAGMA user_version = {known}")
    database = StateDatabase(path)
    store = PullStore(database)
    store.save_links({"a": 1e8})
    store.save_links({"a": 2e8, "b": 1e6})
    assert store.links() == {"a": 2e8, "b": 1e6}
    assert database.load_plan("p") == "body"
    database.close()
