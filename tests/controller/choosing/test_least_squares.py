"""The fit of sums of products: known answers, priors, outliers, and what it says about its own uncertainty."""

import math
import random

import pytest

from fleet_controller.choosing.least_squares import Observation, Prior, Term, fit, log_sum

VAGUE = Prior(0.0, 10.0)


def observe(parts: list[tuple[float, tuple[int, ...]]], value: float, deviation: float = 0.01) -> Observation:
    return Observation(tuple(Term(math.log(known), names) for known, names in parts), math.log(value), deviation)


def rows_of(first: float, second: float) -> list[Observation]:
    """time = a * first + b * second, for a few a and b."""
    pairs = [(1.0, 5.0), (3.0, 1.0), (10.0, 2.0), (0.1, 7.0)]
    return [observe([(a, (0,)), (b, (1,))], a * first + b * second) for a, b in pairs]


def test_it_finds_the_factors_that_made_the_rows() -> None:
    found = fit(rows_of(2.0, 0.3), [VAGUE, VAGUE])
    assert [math.exp(value) for value in found.values] == pytest.approx([2.0, 0.3], rel=1e-3)


def test_a_factor_in_every_term_is_found_beside_the_terms_own() -> None:
    rows = [
        observe([(a, (0, 2)), (b, (1, 2))], 1.5 * (2.0 * a + 0.3 * b)) for a, b in [(1.0, 5.0), (3.0, 1.0), (9.0, 2.0)]
    ]
    known = [Prior(math.log(2.0), 1e-3), Prior(math.log(0.3), 1e-3), VAGUE]
    assert math.exp(fit(rows, known).values[2]) == pytest.approx(1.5, rel=1e-3)


def test_without_rows_the_priors_remain() -> None:
    found = fit([], [Prior(0.7, 0.2)])
    assert found.values == (0.7,)
    assert found.variance_of({0: 1.0}) == pytest.approx(0.04)


def test_nothing_to_fit_is_no_error() -> None:
    assert fit([], []).values == ()


def test_rows_and_prior_are_weighed_by_their_precision() -> None:
    # One row with the prior's deviation: halfway between.
    found = fit([observe([(1.0, (0,))], math.e, deviation=0.5)], [Prior(0.0, 0.5)], robustness=1e3)
    assert found.values[0] == pytest.approx(0.5, rel=2e-3)
    assert found.variance_of({0: 1.0}) == pytest.approx(0.125)


def test_one_wild_row_moves_little() -> None:
    rows = [observe([(1.0, (0,))], 2.0) for _ in range(9)]
    wild = observe([(1.0, (0,))], 200.0)
    assert math.exp(fit([*rows, wild], [VAGUE]).values[0]) == pytest.approx(2.0, rel=0.02)


def test_a_weight_counts_as_that_many_rows() -> None:
    light, heavy = observe([(1.0, (0,))], 1.0, 0.5), observe([(1.0, (0,))], math.e, 0.5)
    heavy = Observation(heavy.terms, heavy.log_value, heavy.deviation, weight=3.0)
    assert fit([light, heavy], [VAGUE], robustness=1e3).values[0] == pytest.approx(0.75, abs=0.01)


def test_the_gradient_is_the_slope() -> None:
    draw = random.Random(3)
    terms = tuple(Term(draw.uniform(-3, 3), (draw.randrange(4), draw.randrange(4))) for _ in range(5))
    values = [draw.uniform(-1, 1) for _ in range(4)]
    _, gradient = log_sum(terms, values)
    for index in range(4):
        moved = [value + (1e-6 if place == index else 0.0) for place, value in enumerate(values)]
        slope = (log_sum(terms, moved)[0] - log_sum(terms, values)[0]) / 1e-6
        assert gradient.get(index, 0.0) == pytest.approx(slope, abs=1e-4)


def test_variances_are_those_of_repeated_fits() -> None:
    """Laplace's approximation against 300 fits to rows with fresh noise of the stated size."""
    draw = random.Random(5)
    truth, noise = (math.log(2.0), math.log(0.3)), 0.05
    pairs = [(1.0, 5.0), (3.0, 1.0), (10.0, 2.0), (0.1, 7.0), (2.0, 2.0)]

    def noisy() -> list[Observation]:
        return [
            observe([(a, (0,)), (b, (1,))], (2.0 * a + 0.3 * b) * math.exp(draw.gauss(0, noise)), noise)
            for a, b in pairs
        ]

    fits = [fit(noisy(), [VAGUE, VAGUE], robustness=50.0) for _ in range(300)]
    for index in range(2):
        spread = math.sqrt(sum((found.values[index] - truth[index]) ** 2 for found in fits) / len(fits))
        assert math.sqrt(fits[0].variance_of({index: 1.0})) == pytest.approx(spread, rel=0.2)


def test_a_prior_without_a_width_is_refused() -> None:
    with pytest.raises(ValueError, match="deviation above zero"):
        fit([], [Prior(0.0, 0.0)])
