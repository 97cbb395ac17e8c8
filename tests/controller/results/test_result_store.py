"""Results in SQLite: whole runs, once, and never lost."""

import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fleet_controller.results.columns import FINGERPRINT_COLUMNS, DeviceSample, Result, Run, Status
from fleet_controller.results.store import (
    Filter,
    count_results,
    find_result,
    load_device_samples,
    load_results,
    load_run,
    measured_fingerprints,
    save_batches,
    save_results,
    select_results,
)
from fleet_controller.state import StateDatabase
from support.result_rows import decode

ROWS_OF_A_RUN = 7
KILLS = 12


@pytest.fixture
def database(tmp_path: Path) -> StateDatabase:
    return StateDatabase(tmp_path / "fleet.db")


def full_run(run_id: str = "r1") -> tuple[list[Result], Run, list[DeviceSample]]:
    rows = [decode(100.0 + depth, depth=depth, run_id=run_id, samples=(99.5, 100.5)) for depth in range(ROWS_OF_A_RUN)]
    run = Run(
        run_id=run_id, host="gpu1", command="llama-bench -p 0", stdout="± raw\n", stderr="warn", details={"n": [1]}
    )
    samples = [
        DeviceSample(run_id=run_id, unix_ms=1000 * second, power_watts=300.5, throttle_reasons="sw_power_cap")
        for second in range(3)
    ]
    return rows, run, samples


def test_a_run_comes_back_as_it_was(database: StateDatabase) -> None:
    rows, run, samples = full_run()
    rows[0] = rows[0].model_copy(
        update={"tool_fields": {"ngl": 99, "label": "a | b"}, "power_limit_watts": 450.0, "persistence_mode": True}
    )
    assert save_results(database, rows, run, samples) == ROWS_OF_A_RUN
    back = load_results(database)
    limits = {"confidence_low", "confidence_high"}
    assert [row.model_dump(exclude=limits) for row in back] == [row.model_dump(exclude=limits) for row in rows]
    assert back[0].confidence_low == pytest.approx(100.0 - 12.706 * 0.5, abs=0.01)
    assert back[0].confidence_high == pytest.approx(100.0 + 12.706 * 0.5, abs=0.01)
    assert load_run(database, "r1") == run
    assert load_device_samples(database, "r1") == samples
    assert load_run(database, "r2") is None


def test_the_tables_have_the_columns_that_are_declared(database: StateDatabase) -> None:
    for table, model, more in (
        ("results", Result, {"id", "result_key", "fingerprint_id"}),
        ("runs", Run, set()),
        ("device_samples", DeviceSample, set()),
    ):
        assert {column.name for column in database.tables[table].columns} == set(model.model_fields) | more
    assert set(FINGERPRINT_COLUMNS) <= set(Result.model_fields)


def test_what_is_sent_twice_is_kept_once(database: StateDatabase) -> None:
    assert [save_results(database, *full_run()) for _ in range(2)] == [ROWS_OF_A_RUN, 0]
    assert len(load_results(database)) == ROWS_OF_A_RUN
    assert len(load_device_samples(database, "r1")) == 3


def test_where_one_row_cannot_be_written_none_is(database: StateDatabase) -> None:
    rows, run, samples = full_run()
    broken = samples[0].model_copy(update={"unix_ms": object()})
    with pytest.raises(Exception, match=r"(?i)serializ|type"):
        save_results(database, rows, run, [*samples, broken])
    database.connection.execute("CREATE TRIGGER no_run BEFORE INSERT ON runs BEGIN SELECT raise(ABORT, 'full'); END")
    with pytest.raises(sqlite3.Error, match="full"):
        save_batches(database, [(rows, [run], samples)])
    assert load_results(database) == []


def test_filters(database: StateDatabase) -> None:
    rows = [
        decode(1.0, host="gpu1"),
        decode(2.0, host="gpu2", backend="vllm", suite="notes"),
        decode(3.0, host="mac1", model="qwen3.5-9b", source="reference", finished_unix_ms=0, depth=8192),
        decode(4.0, host="mac1", test_kind="pp", concurrency=4, client="llama-benchy"),
    ]
    save_results(database, rows)

    def means(**filters: object) -> list[float]:
        wanted = Filter(**filters)  # type: ignore[arg-type]
        assert count_results(database, wanted) == len(list(select_results(database, wanted)))
        return sorted(row.mean or 0 for _, row in select_results(database, wanted))

    assert means(host_pattern="gpu*,!gpu2") == [1.0]
    assert means(host_pattern="all,!mac1") == [1.0, 2.0]
    assert means(host_pattern="nobody") == []
    assert means(models=("QWEN3.5-9B",)) == [3.0]
    assert means(backends=("vLLM",), suites=("notes",)) == [2.0]
    assert means(sources=("reference",)) == [3.0]
    assert means(clients=("llama-benchy",), test_kinds=("pp",)) == [4.0]
    assert means(least_depth=1, most_depth=9000) == [3.0]
    assert means(concurrency=4) == [4.0]
    assert means(since_unix_ms=1) == [1.0, 2.0, 4.0]


def test_the_newest_come_last_and_may_be_all_that_come(database: StateDatabase) -> None:
    save_results(database, [decode(mean, finished_unix_ms=when) for mean, when in ((1.0, 30), (2.0, 10), (3.0, 20))])
    assert [row.mean for _, row in select_results(database, Filter())] == [2.0, 3.0, 1.0]
    assert [row.mean for _, row in select_results(database, Filter(), newest=2)] == [3.0, 1.0]


def test_one_row_of_each_fingerprint_is_the_newest_good_one(database: StateDatabase) -> None:
    now = 1_790_000_000_000
    rows = [
        decode(1.0, finished_unix_ms=now),
        decode(2.0, finished_unix_ms=now + 2),
        decode(3.0, finished_unix_ms=now + 1),
        decode(None, None, status=Status.CONTAMINATED, cause="bob, python", finished_unix_ms=now + 9),
        decode(9.0, depth=8192),
    ]
    save_results(database, rows)
    assert [row.mean for _, row in select_results(database, Filter(), one_per_fingerprint=True)] == [9.0, 2.0]


def test_a_fingerprint_without_a_good_row_tells_what_disturbed_it_where_that_is_asked_for(
    database: StateDatabase,
) -> None:
    bad = [decode(None, None, depth=8192, status=Status.CONTAMINATED, cause=cause, finished_unix_ms=when)
           for cause, when in (("older", 50), ("newest", 70), ("old", 60))]  # fmt: skip
    save_results(database, [decode(1.0, finished_unix_ms=10), *bad])
    assert [row.mean for _, row in select_results(database, Filter(), one_per_fingerprint=True)] == [1.0]
    found = select_results(database, Filter(), one_per_fingerprint=True, with_contaminated=True)
    assert [(row.mean, row.cause) for _, row in found] == [(1.0, ""), (None, "newest")]
    limited = select_results(database, Filter(), newest=1, one_per_fingerprint=True, with_contaminated=True)
    assert [row.mean for _, row in limited] == [1.0]


def test_only_good_rows_of_our_own_let_a_bench_skip(database: StateDatabase) -> None:
    contaminated = decode(None, None, depth=1, status=Status.CONTAMINATED, cause="alice, python, 18.2 GB")
    save_results(database, [decode(), contaminated, decode(depth=2, source="reference")])
    assert measured_fingerprints(database) == {decode().fingerprint_id}
    assert find_result(database, 2) == contaminated
    assert find_result(database, 99) is None


WRITER = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from controller_writer import full_run
from fleet_controller.results.store import save_results
from fleet_controller.state import StateDatabase
database = StateDatabase(Path({path!r}))
for number in range(10**6):
    save_results(database, *full_run(f"{prefix}-{{number}}"))
    print(f"{prefix}-{{number}}", flush=True)
"""


def test_a_writer_that_is_killed_at_any_point_loses_nothing_that_it_told_as_kept(tmp_path: Path) -> None:
    """kill -9 at random moments: every run that was told is whole, and no run is there by half."""
    path = tmp_path / "fleet.db"
    (tmp_path / "controller_writer.py").write_text(Path(__file__).read_text())
    told: set[str] = set()
    moments = random.Random(4)
    for round_number in range(KILLS):
        paths = [str(tmp_path), str(Path(__file__).parents[2])]
        code = WRITER.format(paths=paths, path=str(path), prefix=f"k{round_number}")
        writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        told.add(writer.stdout.readline().strip())
        time.sleep(moments.uniform(0, 0.05))  # the moment of the kill is what varies, nothing is awaited
        writer.kill()
        told |= {line.strip() for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")}
        writer.wait()
        writer.stdout.close()
    database = StateDatabase(path)
    rows = database.connection.execute("SELECT run_id, count(*) FROM results GROUP BY run_id").fetchall()
    assert {count for _, count in rows} == {ROWS_OF_A_RUN}
    assert told <= {run_id for run_id, _ in rows}
    assert len(told) >= KILLS
    for run_id, _ in rows:
        assert load_run(database, run_id) is not None
        assert len(load_device_samples(database, run_id)) == 3
