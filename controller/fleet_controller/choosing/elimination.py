"""Which option to measure next so that the best one is known soon: successive elimination. Pure and deterministic.

Every option has an interval of its goal (more is better): a prediction's, or a measured figure's. One whose interval
ends below where another's begins cannot be the best and is never measured (Even-Dar, Mannor and Mansour 2006, "Action
elimination and stopping conditions"). Of those left the one is measured next that, by what is expected of it, leaves
the least to measure. Where the intervals hold, the best option is never eliminated. What predictions alone make the
winner is measured once: where it falls short, the others are candidates again.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum

from fleet_controller.choosing.bars import MOST_LOSS_ON_EQUAL_TERMS
from fleet_controller.domain.base import Frozen

# Figures within 2 % are one: llama-bench's own deviation is 0.1 to 2 % on devices that nothing else uses.
NOISE = 0.02
# What a measurement is expected to say: an interval's ends and its middle value, as a normal distribution weighs them
# (three-point rule for the 10th, 50th and 90th percentile: Keefer and Bodily 1983).
OUTCOME_WEIGHTS = (0.3, 0.4, 0.3)

Pair = tuple[str, str]


class Candidate(Frozen):
    """One option: its interval, how often it was measured, and what one more run costs; None: no more runs.

    `high` is infinite where nothing is known of it.
    """

    name: str
    value: float
    low: float
    high: float
    runs: int = 0
    cost_seconds: float | None = None

    @property
    def known(self) -> bool:
        return math.isfinite(self.high)


class Run(Frozen):
    """The next measurement, and which others it may make needless."""

    name: str
    cost_seconds: float
    rules_out: tuple[str, ...] = ()
    text: str = ""


class Why(StrEnum):
    """Why measuring ends."""

    SETTLED = "settled"
    TIE = "tie"
    NOISY = "noisy"
    BUDGET = "budget"
    UNMEASURABLE = "unmeasurable"
    NOTHING = "nothing"


class Stop(Frozen):
    """Nothing more is measured. `leaders`: what may be the best, the best by its value first."""

    why: Why
    leaders: tuple[str, ...]
    text: str


class Eliminated(Frozen):
    """An option that cannot be the best, and the one that is better for sure."""

    name: str
    by: str


def eliminated(candidates: Iterable[Candidate], faster: Collection[Pair] = ()) -> tuple[Eliminated, ...]:
    """What cannot win. `faster` are pairs (one, other) of which the first is better for sure, though intervals overlap:
    two predictions for one machine are off by much the same."""
    ordered = _ordered(candidates)
    names = {candidate.name for candidate in ordered}
    pairs = {(one, other) for one, other in faster if one in names and other in names and (other, one) not in faster}
    found = []
    for candidate in ordered:
        rivals = [other for other in ordered if other.name != candidate.name]
        better = [rival for rival in rivals if rival.low > candidate.high or (rival.name, candidate.name) in pairs]
        if better:
            best = max(better, key=lambda rival: rival.low)
            found.append(Eliminated(name=candidate.name, by=best.name))
    if found and len(found) == len(ordered):  # pairs that contradict each other or the intervals say nothing
        return eliminated(ordered)
    return tuple(found)


def next_run(
    candidates: Iterable[Candidate], faster: Collection[Pair] = (), budget_seconds: float | None = None
) -> Run | Stop:
    """What to measure next, or why to stop. `budget_seconds` is what is left; None = no limit."""
    ordered = _ordered(candidates)
    gone = {item.name for item in eliminated(ordered, faster)}
    left = [candidate for candidate in ordered if candidate.name not in gone]
    leaders = tuple(candidate.name for candidate in left)
    if not left:
        return Stop(why=Why.NOTHING, leaders=(), text="there is nothing to choose from")
    if len(left) == 1:
        winner = left[0]
        if len(ordered) > 1 and not winner.runs and winner.cost_seconds is not None and _within(winner, budget_seconds):
            return Run(name=winner.name, cost_seconds=_cost(winner), text=could_win(winner, left))
        return Stop(why=Why.SETTLED, leaders=leaders, text=_settled(left[0], len(ordered)))
    if _is_tie(left):
        return Stop(why=Why.TIE, leaders=leaders, text=f"within {NOISE:.0%} of each other: {', '.join(leaders)}")
    possible = [candidate for candidate in left if candidate.cost_seconds is not None]
    if not possible:
        if all(candidate.runs for candidate in left):
            return _spent(left, leaders)
        unmeasured = ", ".join(candidate.name for candidate in left if not candidate.runs)
        return Stop(why=Why.UNMEASURABLE, leaders=leaders, text=f"cannot be measured, and might win: {unmeasured}")
    affordable = [candidate for candidate in possible if _within(candidate, budget_seconds)]
    if not affordable:
        cheapest = min(_cost(candidate) for candidate in possible)
        text = f"the next run takes about {cheapest:.0f} s, {max(budget_seconds or 0.0, 0.0):.0f} s are left"
        return Stop(why=Why.BUDGET, leaders=leaders, text=text)
    return _choice(affordable, left)


def could_win(candidate: Candidate, candidates: Iterable[Candidate]) -> str:
    """Why an option is worth measuring, in words; `candidates` are those left."""
    rivals = [other for other in candidates if other.name != candidate.name]
    if not rivals:
        return "it is predicted to win, which a run makes sure"
    if not candidate.known:
        return "nothing is known of its speed"
    best = max(rivals, key=lambda other: (other.low, other.name))
    return f"up to {candidate.high:.4g}, and {best.name} has {best.low:.4g} at least"


def _ordered(candidates: Iterable[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda candidate: (-candidate.value, candidate.name))


def _cost(candidate: Candidate) -> float:
    return candidate.cost_seconds if candidate.cost_seconds is not None else 0.0


def _within(candidate: Candidate, budget_seconds: float | None) -> bool:
    return budget_seconds is None or _cost(candidate) <= budget_seconds


def _is_tie(left: Sequence[Candidate]) -> bool:
    """All are measured, and so closely that no two can differ by more than the noise."""
    if not all(candidate.runs and candidate.known for candidate in left):
        return False
    return max(candidate.high for candidate in left) <= (1 + NOISE) * min(candidate.low for candidate in left)


def _spent(left: Sequence[Candidate], leaders: tuple[str, ...]) -> Stop:
    """All are measured as often as they may be, and their bars overlap."""
    bars = ", ".join(f"{one.name} {one.low:.4g} to {one.high:.4g}" for one in left)
    runs = max(one.runs for one in left)
    if max(one.value for one in left) <= MOST_LOSS_ON_EQUAL_TERMS * min(one.value for one in left):
        return Stop(why=Why.TIE, leaders=leaders, text=f"a tie after {runs} runs: {bars}")
    return Stop(why=Why.NOISY, leaders=leaders, text=f"too noisy to tell after {runs} runs: {bars}")


def _settled(winner: Candidate, count: int) -> str:
    if count == 1:
        return f"{winner.name} is the only one"
    how = "measured" if winner.runs else "by predictions alone"
    return f"{winner.name} wins, {how}: no other can reach its {winner.low:.4g}"


def _choice(affordable: Sequence[Candidate], left: Sequence[Candidate]) -> Run:
    """Never measured ones first; then a run more of what is least sure."""
    fresh = [candidate for candidate in affordable if not candidate.runs]
    if not fresh:
        widest = max(affordable, key=lambda candidate: (_relative_width(candidate), -_cost(candidate), candidate.name))
        text = f"once more: {widest.low:.4g} to {widest.high:.4g} overlaps with others"
        return Run(name=widest.name, cost_seconds=_cost(widest), text=text)
    unknown = [candidate for candidate in fresh if not candidate.known]
    if unknown:  # no other's figure can rule it out
        chosen = min(unknown, key=lambda candidate: (_cost(candidate), candidate.name))
    else:
        chosen = min(
            fresh, key=lambda candidate: (_expected_seconds(candidate, left), -candidate.value, candidate.name)
        )
    out = tuple(other.name for other in left if other is not chosen and chosen.known and other.high < chosen.high)
    return Run(name=chosen.name, cost_seconds=_cost(chosen), rules_out=out, text=could_win(chosen, left))


def _relative_width(candidate: Candidate) -> float:
    return (candidate.high - candidate.low) / candidate.value if candidate.value > 0 else math.inf


def _expected_seconds(candidate: Candidate, left: Sequence[Candidate]) -> float:
    """What measuring it takes, and what would then be left to measure."""
    others = [other for other in left if other is not candidate]
    expected = 0.0
    for weight, figure in zip(OUTCOME_WEIGHTS, (candidate.low, candidate.value, candidate.high), strict=True):
        bar = max(figure * (1 - NOISE), *(other.low for other in others))
        rest = [other for other in others if other.high >= bar]
        alone = not rest or (len(rest) == 1 and figure * (1 + NOISE) < rest[0].low)
        expected += 0.0 if alone else weight * sum(_cost(other) for other in rest if not other.runs)
    return _cost(candidate) + expected
