"""Successive elimination: the best is never thrown away, it ends, and it measures no more than it has to."""

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_controller.choosing.elimination import Candidate, Run, Stop, Why, eliminated, next_run

MOST_RUNS = 3


def candidate(name: str, low: float, high: float, runs: int = 0, cost: float | None = 10.0) -> Candidate:
    value = math.sqrt(low * high) if math.isfinite(high) else low
    return Candidate(name=name, value=value, low=low, high=high, runs=runs, cost_seconds=cost)


def measured(before: Candidate, truth: float, width: float) -> Candidate:
    """One run more: an interval around the truth that every run makes narrower."""
    runs = before.runs + 1
    half = width / runs
    cost = before.cost_seconds if runs < MOST_RUNS else None
    low, high = truth * (1 - half), truth * (1 + half)
    return Candidate(name=before.name, value=truth, low=low, high=high, runs=runs, cost_seconds=cost)


def play(
    candidates: Sequence[Candidate], truths: dict[str, float], width: float, budget: float | None = None
) -> tuple[list[str], Stop]:
    """Every run that is asked for is made; gives what was run, and how it ended."""
    known = {one.name: one for one in candidates}
    ran: list[str] = []
    while True:
        step = next_run(known.values(), budget_seconds=budget)
        if isinstance(step, Stop):
            return ran, step
        ran.append(step.name)
        if budget is not None:
            budget -= step.cost_seconds
        known[step.name] = measured(known[step.name], truths[step.name], width)
        assert len(ran) <= MOST_RUNS * len(known), "it does not end"


speeds = st.floats(min_value=1.0, max_value=1000.0)
below = st.floats(min_value=0.3, max_value=1.0)
above = st.floats(min_value=1.0, max_value=3.0)
worlds = st.lists(
    st.tuples(speeds, below, above, st.booleans(), st.floats(min_value=1.0, max_value=600.0)), min_size=1, max_size=7
)


def made(world: Sequence[tuple[float, float, float, bool, float]]) -> tuple[list[Candidate], dict[str, float]]:
    """Candidates whose intervals hold the truth; of some nothing is known."""
    found, truths = [], {}
    for number, (truth, down, up, known, cost) in enumerate(world):
        name = f"option {number}"
        truths[name] = truth
        low, high = (truth * down, truth * up) if known else (0.0, math.inf)
        found.append(candidate(name, low, high, cost=cost))
    return found, truths


@given(worlds, st.floats(min_value=0.001, max_value=0.3), st.one_of(st.none(), st.floats(0.0, 1000.0)))
def test_the_best_is_never_eliminated_and_it_ends(
    world: list[tuple[float, float, float, bool, float]], width: float, budget: float | None
) -> None:
    candidates, truths = made(world)
    ran, stop = play(candidates, truths, width, budget)
    best = max(truths, key=lambda name: truths[name])
    assert best in stop.leaders or truths[best] == max(truths[name] for name in stop.leaders)
    if stop.why is Why.SETTLED:
        assert len(stop.leaders) == 1
    if budget is not None:
        costs = {one.name: one.cost_seconds or 0.0 for one in candidates}
        assert sum(costs[name] for name in ran) <= budget


@given(worlds, st.integers(), st.floats(min_value=0.001, max_value=0.3))
def test_the_order_of_the_options_changes_nothing(
    world: list[tuple[float, float, float, bool, float]], seed: int, width: float
) -> None:
    candidates, truths = made(world)
    shuffled = random.Random(seed).sample(candidates, len(candidates))
    assert play(candidates, truths, width) == play(shuffled, truths, width)


@given(worlds)
def test_what_is_eliminated_is_beaten_by_one_that_is_not(world: list[tuple[float, float, float, bool, float]]) -> None:
    candidates, _ = made(world)
    out = eliminated(candidates)
    by_name = {one.name: one for one in candidates}
    assert len(out) < len(candidates)
    assert all(by_name[item.by].low > by_name[item.name].high for item in out)
    assert not {item.by for item in out} & {item.name for item in out}


def test_where_predictions_settle_it_the_winner_alone_is_measured() -> None:
    options = [candidate("fast", 90, 110), candidate("slow", 40, 60)]
    ran, stop = play(options, {"fast": 100, "slow": 50}, 0.01)
    assert (ran, stop.why, stop.leaders) == (["fast"], Why.SETTLED, ("fast",))
    assert stop.text == "fast wins, measured: no other can reach its 99"
    step = next_run(options, budget_seconds=1)
    assert isinstance(step, Stop) and step.text == "fast wins, by predictions alone: no other can reach its 90"


def test_a_winner_that_falls_short_brings_the_others_back() -> None:
    options = [candidate("fast", 90, 110), candidate("slow", 40, 60)]
    ran, stop = play(options, {"fast": 45, "slow": 55}, 0.01)
    assert ran == ["fast", "slow"] and stop.leaders == ("slow",)


def test_what_cannot_win_is_never_run() -> None:
    options = [candidate("a", 90, 120), candidate("b", 95, 115), candidate("slow", 40, 60)]
    ran, stop = play(options, {"a": 110, "b": 100, "slow": 50}, 0.01)
    assert "slow" not in ran and stop.leaders == ("a",)
    assert eliminated(options)[0].by == "b"


def test_the_first_run_is_the_one_that_makes_most_others_needless() -> None:
    wide = candidate("wide", 80, 200)
    others = [candidate(f"like {number}", 100, 130) for number in range(4)]
    step = next_run([wide, *others])
    assert isinstance(step, Run) and step.name == "wide"
    assert step.rules_out == tuple(other.name for other in others)
    assert step.text == "up to 200, and like 3 has 100 at least"
    dear = candidate("dear", 80, 125, cost=3600)
    step = next_run([dear, *others])
    assert isinstance(step, Run) and step.name != "dear", "a cheap one may make it needless"


def test_one_without_a_figure_is_measured_before_anything_is_settled() -> None:
    step = next_run([candidate("fast", 90, 110), candidate("unknown", 0, math.inf), candidate("slow", 4, 6)])
    assert isinstance(step, Run) and step.name == "unknown"
    assert step.text == "nothing is known of its speed"


def test_runs_are_repeated_only_where_bars_overlap() -> None:
    step = next_run([candidate("a", 90, 110, runs=1), candidate("b", 100, 104, runs=1), candidate("c", 50, 60, runs=1)])
    assert isinstance(step, Run) and step.name == "a" and step.text.startswith("once more")


def test_a_tie_is_a_tie_when_nothing_can_tell_it_apart() -> None:
    close = next_run([candidate("a", 100, 101, runs=1), candidate("b", 100.5, 101.5, runs=1)])
    assert isinstance(close, Stop) and close.why is Why.TIE and close.text == "within 2% of each other: b, a"
    spent = next_run([candidate("a", 90, 110, runs=3, cost=None), candidate("b", 95, 108, runs=3, cost=None)])
    assert isinstance(spent, Stop) and spent.why is Why.TIE
    assert spent.text == "a tie after 3 runs: b 95 to 108, a 90 to 110"


def test_what_stays_far_apart_with_wide_bars_is_no_tie() -> None:
    noisy = next_run([candidate("a", 40, 250, runs=3, cost=None), candidate("b", 59, 61, runs=3, cost=None)])
    assert isinstance(noisy, Stop) and noisy.why is Why.NOISY and noisy.leaders == ("a", "b")
    assert noisy.text == "too noisy to tell after 3 runs: a 40 to 250, b 59 to 61"


def test_what_cannot_be_measured_is_said() -> None:
    step = next_run([candidate("a", 90, 110, cost=None), candidate("b", 95, 108, runs=3, cost=None)])
    assert isinstance(step, Stop) and step.why is Why.UNMEASURABLE and step.text.endswith("might win: a")


def test_a_budget_ends_it_with_what_is_known() -> None:
    options = [candidate("a", 90, 120, cost=100), candidate("b", 95, 115, cost=50)]
    step = next_run(options, budget_seconds=70)
    assert isinstance(step, Run) and step.name == "b", "the one that the budget has room for"
    step = next_run(options, budget_seconds=20)
    assert isinstance(step, Stop) and (step.why, set(step.leaders)) == (Why.BUDGET, {"a", "b"})


@pytest.mark.parametrize("faster", [{("a", "b")}, {("a", "b"), ("b", "a")}, {("a", "nobody")}])
def test_pairs_that_are_known_settle_what_intervals_leave_open(faster: set[tuple[str, str]]) -> None:
    step = next_run([candidate("a", 90, 120, runs=1), candidate("b", 85, 118)], faster)
    assert isinstance(step, Stop) is (faster == {("a", "b")})


def test_pairs_that_go_in_a_circle_eliminate_nobody() -> None:
    options = [candidate(name, 90, 110) for name in "abc"]
    assert eliminated(options, {("a", "b"), ("b", "c"), ("c", "a")}) == ()


def test_nothing_to_choose_from() -> None:
    assert next_run([]) == Stop(why=Why.NOTHING, leaders=(), text="there is nothing to choose from")
    only = next_run([candidate("a", 1, 2)])
    assert isinstance(only, Stop) and only.text == "a is the only one"
