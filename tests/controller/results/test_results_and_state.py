"""What the controller remembers: migrations, results, and the matrix drawn from them."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from fleet_controller.results.columns import COMPARABLE_COLUMNS, Result
from fleet_controller.results.matrix import Figure, build_matrix
from fleet_controller.results.store import load_results, save_results
from fleet_controller.state import MIGRATIONS, PLAN_KEPT_MS, KnownHost, NewerDatabaseError, StateDatabase


def result(host: str = "gpu1", test: str = "tg128", mean: float = 100.0, model: str = "m") -> Result:
    return Result(
        run_id="r1",
        host=host,
        model=model,
        quantization="Q4_K_M",
        backend="llama.cpp",
        backend_version="b1",
        artifact="/m.gguf",
        client="llama-bench",
        test=test,
        prompt_tokens=0,
        generation_tokens=128,
        repetitions=3,
        mean_tokens_per_second=mean,
        chip="RTX 4090",
    )


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    database = StateDatabase(tmp_path / "fleet.db")
    rows = [result(), result(host="mac1", test="pp512", mean=9.5)]
    save_results(database, rows)
    assert load_results(database) == rows
    assert load_results(database, host_glob="mac*") == rows[1:]
    assert load_results(database, model="other") == []


def test_comparable_columns_are_columns(tmp_path: Path) -> None:
    database = StateDatabase(tmp_path / "fleet.db")
    assert set(COMPARABLE_COLUMNS) <= {column.name for column in database.tables["results"].columns}


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


def test_an_older_database_is_taken_forward(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    older = StateDatabase(path)
    older.save_plan("p1", "kept")
    older.tables["results"].drop()
    older.tables.conn.execute("PRAGMA user_version = 1")
    older.close()
    newer = StateDatabase(path)
    save_results(newer, [result()])
    assert newer.load_plan("p1") == "kept"


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


def figure(host: str, test: str, speed: float, when: int) -> Figure:
    return Figure(host, "m", "Q4", "llama.cpp", test, speed, when)


def test_matrix_pairs_a_run_and_lets_the_newest_win() -> None:
    matrix = build_matrix(
        [
            figure("a", "pp512", 4000.0, 1),
            figure("a", "tg128", 150.4, 1),
            figure("a", "pp512", 4200.0, 2),
            figure("a", "tg128", 160.0, 2),
            figure("b", "tg128", 8.314, 3),
            figure("b", "pp512", 46076.0, 3),
        ]
    )
    row = ("m", "Q4", "llama.cpp", "tg128 / pp512")
    assert matrix.hosts == ("a", "b")
    assert matrix.rows == (row,)
    assert matrix.cells == {(row, "a"): "160 / 4,200", (row, "b"): "8.31 / 46,076"}


def test_matrix_never_mixes_token_counts() -> None:
    matrix = build_matrix([figure("a", "tg128", 1.0, 1), figure("a", "tg32", 2.0, 2)])
    assert [row[3] for row in matrix.rows] == ["tg128", "tg32"]
