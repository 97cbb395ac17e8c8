"""Student's t against published tables, Welch's test against a worked example."""

import math
import statistics

import pytest

from fleet_controller.results.statistics import (
    Estimate,
    estimate_of,
    incomplete_beta,
    interval_of,
    t_probability,
    t_quantile,
    welch,
)
from support.result_rows import decode


@pytest.mark.parametrize(
    ("probability", "degrees", "value"),
    [  # NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 4, 2.776),
        (0.975, 9, 2.262),
        (0.975, 30, 2.042),
        (0.975, 100, 1.984),
        (0.95, 5, 2.015),
        (0.995, 3, 5.841),
        (0.999, 10, 4.144),
        (0.90, 60, 1.296),
    ],
)
def test_quantiles_are_those_of_the_tables(probability: float, degrees: int, value: float) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(value, abs=5e-4)
    assert t_quantile(1 - probability, degrees) == pytest.approx(-value, abs=5e-4)


def test_with_many_degrees_it_becomes_the_normal_distribution() -> None:
    assert t_quantile(0.975, 1e7) == pytest.approx(statistics.NormalDist().inv_cdf(0.975), abs=1e-5)


@pytest.mark.parametrize("degrees", [1.0, 1.7, 4.3, 25.0, 400.0])
@pytest.mark.parametrize("value", [-7.0, -0.4, 0.0, 1.0, 3.3])
def test_probability_and_quantile_are_inverse_also_between_whole_degrees(value: float, degrees: float) -> None:
    assert t_quantile(t_probability(value, degrees), degrees) == pytest.approx(value, abs=1e-5)


def test_closed_forms() -> None:
    """One degree is Cauchy's distribution; two have 1/2 + t / (2 sqrt(2 + t^2)); I_x(1, b) is 1 - (1 - x)^b."""
    for value in (-3.0, 0.5, 20.0):
        assert t_probability(value, 1) == pytest.approx(0.5 + math.atan(value) / math.pi, abs=1e-12)
        assert t_probability(value, 2) == pytest.approx(0.5 + value / (2 * math.sqrt(2 + value**2)), abs=1e-12)
    assert incomplete_beta(1, 3.5, 0.3) == pytest.approx(1 - 0.7**3.5, abs=1e-12)


@pytest.mark.parametrize(("probability", "degrees"), [(0.0, 3.0), (1.0, 3.0), (0.9, 0.0)])
def test_what_has_no_quantile_is_refused(probability: float, degrees: float) -> None:
    with pytest.raises(ValueError, match="no quantile"):
        t_quantile(probability, degrees)


def test_welch_on_a_worked_example() -> None:
    """Data sets A1 and A2 of en.wikipedia.org/wiki/Welch's_t-test (Ruxton 2006's kind): t = -2.46, df = 25.0."""
    first = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4]
    second = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4]
    estimates = [Estimate(statistics.fmean(x), statistics.stdev(x), len(x)) for x in (first, second)]
    found = welch(estimates[0], estimates[1])
    error = math.hypot(*(estimate.standard_error for estimate in estimates))
    assert -found.difference / error == pytest.approx(-2.46, abs=0.005)
    assert found.degrees_of_freedom == pytest.approx(25.0, abs=0.05)
    assert found.shown and 0 < found.low < found.high
    assert not welch(estimates[0], estimates[0]).shown


def test_equal_repetitions_without_any_spread_leave_no_doubt() -> None:
    assert welch(Estimate(1.0, 0.0, 3), Estimate(2.0, 0.0, 3)).shown
    assert not welch(Estimate(1.0, 0.0, 3), Estimate(1.0, 0.0, 3)).shown


def test_samples_count_before_what_the_tool_says_of_them() -> None:
    row = decode(2.0, 99.0, samples=(1.0, 2.0, 3.0), repetitions=3)
    assert estimate_of(row) == Estimate(2.0, 1.0, 3)
    assert interval_of(row) == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-3)


def test_a_deviation_that_was_divided_by_n_is_put_right() -> None:
    """llama-benchy's 1093.59 of two values 12110.68 and 14297.86 is numpy's; divided by n - 1 it is 1546.57."""
    found = estimate_of(decode(13204.27, 1093.59, repetitions=2, deviation_kind="population"))
    assert found is not None
    assert found.deviation == pytest.approx(statistics.stdev([12110.68, 14297.86]), abs=0.01)


@pytest.mark.parametrize("columns", [{"repetitions": 1}, {"repetitions": 0}, {"deviation": None}])
def test_without_repetitions_there_is_no_interval(columns: dict[str, float]) -> None:
    assert interval_of(decode(**columns)) is None
