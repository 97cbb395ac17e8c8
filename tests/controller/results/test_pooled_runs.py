"""Runs of one cell as one figure: the same for `fleet choose` and for `fleet bench --to-decide`."""

import statistics
from pathlib import Path

import pytest

from fleet_controller.operations.choosing_knowledge import Knowledge
from fleet_controller.results.columns import Metric, Result, Status
from fleet_controller.results.comparability import error_bar
from fleet_controller.results.pooling import MOST_RUNS, pooled, pooled_by_fingerprint
from fleet_controller.results.store import save_results
from fleet_controller.state import StateDatabase
from fleet_inventory.catalog import load_catalog


def run(number: int, *samples: float, **changes: object) -> Result:
    base = Result(host="gpu1", chip="RTX 4090", backend="llama.cpp", backend_version="b1", model="tiny",
                  quantization="Q8_0", client="llama-bench", test_kind=Metric.DECODE, generation_tokens=64,
                  run_id=f"bench-x-r{number}", mean=sum(samples) / len(samples), samples=samples,
                  repetitions=len(samples), finished_unix_ms=number)  # fmt: skip
    return base.model_copy(update=changes)


def width(row: Result) -> float:
    bar = error_bar(row)
    assert bar is not None
    return bar[1] - bar[0]


def test_one_run_is_what_it_was() -> None:
    assert pooled([run(1, 99.0, 101.0)]) == run(1, 99.0, 101.0)


def test_runs_that_agree_make_a_figure_surer_and_runs_that_do_not_make_it_wide() -> None:
    first = run(1, 99.0, 100.0, 101.0)
    agreeing = pooled([first, run(2, 99.5, 100.0, 100.5)])
    assert (agreeing.mean, agreeing.repetitions, agreeing.run_id) == (100.0, 6, "bench-x-r2")
    assert width(agreeing) < width(first)
    assert width(pooled([first, run(2, 59.0, 60.0, 61.0)])) > 5 * width(first)


def test_the_newest_runs_count_in_whatever_order_they_come() -> None:
    rows = [run(number, float(number), float(number)) for number in (4, 1, 3, 2)]
    assert pooled(rows).mean == pytest.approx(3.0)
    assert pooled(rows).repetitions == 2 * MOST_RUNS == 6


def test_where_a_tool_told_no_repetitions_each_run_is_one() -> None:
    rows = [run(number, mean, samples=(), repetitions=0, deviation=None) for number, mean in ((1, 98.0), (2, 102.0))]
    found = pooled(rows)
    assert (found.mean, found.repetitions) == (100.0, 2)
    assert found.deviation == pytest.approx(2.828, abs=1e-3)


def test_means_and_deviations_say_the_same_as_the_repetitions_themselves() -> None:
    told = [run(1, 98.0, 100.0, 103.0), run(2, 99.0, 104.0)]
    as_means = [row.model_copy(update={"samples": (), "deviation": statistics.stdev(row.samples)}) for row in told]
    one, other = pooled(told), pooled(as_means)
    assert one.deviation == pytest.approx(statistics.stdev([98.0, 100.0, 103.0, 99.0, 104.0]))
    assert (one.mean, one.deviation) == pytest.approx((other.mean, other.deviation))
    assert error_bar(one) == pytest.approx(error_bar(other))


def test_other_conditions_are_never_averaged_and_disturbed_runs_count_for_nothing() -> None:
    rows = [run(1, 100.0), run(2, 200.0, backend_version="b2"), run(3, 1.0, status=Status.CONTAMINATED, mean=None)]
    assert [row.mean for row in pooled_by_fingerprint(rows)] == [100.0, 200.0]


def test_what_choices_go_by_is_pooled(tmp_path: Path) -> None:
    database = StateDatabase(tmp_path / "fleet.db")
    save_results(database, [run(1, 99.0, 101.0), run(2, 109.0, 111.0)])
    (row,) = Knowledge(database, load_catalog()).rows_of(frozenset({"tiny"}))
    database.close()
    assert (row.mean, row.repetitions) == (105.0, 4)
