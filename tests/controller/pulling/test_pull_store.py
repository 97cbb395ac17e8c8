"""Pulls in fleet.db: kept before anything is begun, gone on with by whoever comes next."""

import sqlite3
from pathlib import Path

from fleet_controller.distributing.conductor import ConductorState
from fleet_controller.distributing.model import Member
from fleet_controller.domain.pulls import PlannedPull, PulledFiles, PullHost, PullPart, PullSource, PullState
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
