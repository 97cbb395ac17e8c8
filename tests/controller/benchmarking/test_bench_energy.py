"""Energy per token: the integral of power over the decode part, from the tools' own times."""

from pathlib import Path
from typing import Any

import pytest

from fleet_controller.benchmarking.energy import (
    benchy_intervals,
    energy_joules,
    joules_per_token,
    llama_bench_intervals,
    power_line,
)

DATA = Path(__file__).parent / "data"
MARKS = [
    [0.5, "llama-bench: benchmark 1/2: prompt run 1/2"],
    [2.0, "llama-bench: benchmark 2/2: depth run 1/2 (cached)"],
    [3.0, "llama-bench: benchmark 2/2: generation run 1/2"],
    [5.0, "llama-bench: benchmark 2/2: depth run 2/2 (cached)"],
    [6.0, "llama-bench: benchmark 2/2: generation run 2/2"],
]


def test_the_integral_of_a_line() -> None:
    line = [(0.0, 100.0), (2.0, 200.0), (4.0, 200.0)]
    assert energy_joules(line, 0.0, 4.0) == pytest.approx(700.0)  # a trapezium of 300 J and 400 J
    assert energy_joules(line, 1.0, 3.0) == pytest.approx(375.0)
    assert energy_joules(line, 4.0, 6.0) == pytest.approx(400.0)  # beyond the last sample, its power


def test_decode_intervals_of_llama_bench_leave_out_prompts_depths_and_warm_up() -> None:
    assert llama_bench_intervals(MARKS, 9.0, skipped=0) == {2: [(3.0, 5.0), (6.0, 9.0)]}
    assert llama_bench_intervals(MARKS, 9.0, skipped=1) == {2: [(6.0, 9.0)]}


def test_joules_per_token() -> None:
    line = [(float(second), 150.0) for second in range(10)]
    assert joules_per_token(line, [(3.0, 5.0), (6.0, 8.0)], 100) == pytest.approx(150.0 * 4 / 200)
    assert joules_per_token(line, [(3.0, 3.5)], 100) is None  # shorter than the time between two samples
    short = [(start + 0.1, start + 0.6) for start in range(8)]
    assert joules_per_token(line, short, 100) is None  # four seconds in all, and no sample within
    assert joules_per_token(line, [(0.9, 3.1)], 100) is not None
    assert joules_per_token([], [(3.0, 9.0)], 100) is None


def test_a_second_in_which_a_device_tells_no_power_is_left_out() -> None:
    samples: list[dict[str, Any]] = [
        {"seconds": 1.0, "devices": [{"power_watts": 100.0}, {"power_watts": 50.0}]},
        {"seconds": 2.0, "devices": [{"power_watts": 100.0}, {}]},
        {"seconds": 3.0},
    ]
    assert power_line(samples) == [(1.0, 150.0)]


def test_decode_intervals_of_llama_benchy() -> None:
    text = (DATA / "llama-benchy.json.progress.jsonl").read_text(encoding="utf-8")
    found = benchy_intervals(text, 1795479019.0)
    assert set(found) == {0, 256}
    for intervals in found.values():
        assert intervals and all(0 < start < end < 60 for start, end in intervals)
