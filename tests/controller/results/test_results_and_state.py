"""What the controller remembers: hosts, plans, and how its database is taken forward."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from fleet_controller.results.columns import Metric
from fleet_controller.results.store import load_results, load_run
from fleet_controller.state import (
    MIGRATIONS,
    PLAN_KEPT_MS,
    KnownHost,
    NewerDatabaseError,
    StateDatabase,
    UnusableDatabaseError,
)

OLD_DATABASE = Path(__file__).parent / "data" / "fleet_0_1.sql"  # dumped from what fleet 0.1 wrote


def test_hosts_and_plans_are_kept(tmp_path: Path) -> None:
    database = StateDatabase(tmp_path / "fleet.db")
    database.save_hosts([KnownHost("a", {"host": "a"}, 5)])
    database.save_hosts([KnownHost("a", {"host": "a", "seconds": 1.0}, 6)])
    database.save_plan("p1", "{}")
    database.close()
    again = StateDatabase(tmp_path / "fleet.db")
    assert again.known_hosts() == {"a": KnownHost("a", {"host": "a", "seconds": 1.0}, 6)}
    assert again.load_plan("p1") == "{}"
    assert again.load_plan("p2") is None


def test_plans_of_last_month_are_forgotten(tmp_path: Path) -> None:
    database = StateDatabase(tmp_path / "fleet.db")
    database.save_plan("old", "{}")
    database.connection.execute("UPDATE plans SET created_unix_ms = created_unix_ms - ?", (PLAN_KEPT_MS + 1000,))
    database.save_plan("new", "{}")
    assert (database.load_plan("old"), database.load_plan("new")) == (None, "{}")


def test_a_database_of_the_first_version_is_taken_forward_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(OLD_DATABASE.read_text())
        old = connection.execute("SELECT host, test, mean_tokens_per_second, raw FROM results ORDER BY id").fetchall()
    connection.close()
    newer = StateDatabase(path)
    assert newer.load_plan("p1") == "kept"
    rows = load_results(newer)
    runs = [load_run(newer, row.run_id) for row in rows]
    assert [(row.host, row.test, row.mean, run and run.stdout) for row, run in zip(rows, runs, strict=True)] == old
    first = rows[0]
    assert (first.test_kind, first.prompt_tokens, first.deviation, first.repetitions) == (Metric.PREFILL, 512, 7.5, 3)
    assert (first.chip, first.driver_version, first.power_limit_watts) == ("NVIDIA GeForce RTX 4090", "580.1", 450.0)
    assert (rows[2].driver_version, rows[2].power_limit_watts, rows[1].deviation) == ("", None, None)


def test_a_newer_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(NewerDatabaseError, match="use the newer fleet"):
        StateDatabase(path).load_plan("p1")


def test_processes_that_open_a_fresh_database_at_once_do_not_collide(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from fleet_controller.state import StateDatabase;"
        "database = StateDatabase(pathlib.Path(sys.argv[1])); print('ready', flush=True); sys.stdin.readline();"
        "database.save_plan(sys.argv[2], '{}')"
    )
    path = tmp_path / "fleet.db"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.communicate("go\n", timeout=60)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert all(StateDatabase(path).load_plan(str(number)) == "{}" for number in range(3))


def test_a_damaged_database_says_what_to_do_and_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    path.write_bytes(b"no database at all\n" * 200)
    with pytest.raises(UnusableDatabaseError, match=r"is damaged.*move it away"):
        StateDatabase(path).known_hosts()
    assert path.read_bytes() == b"no database at all\n" * 200
