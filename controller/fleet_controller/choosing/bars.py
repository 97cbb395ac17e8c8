"""What the error bars of two figures say of the two, on the level of comparability that they have. Pure."""

from enum import StrEnum

from fleet_controller.choosing.options import Certainty, Goal, Option, Standing
from fleet_controller.results.comparability import NEAR_WIDENING

_MEASURED = (Certainty.MEASURED, Certainty.CHIP, Certainty.NEAR)
# Their bars are those of the row itself; a near one is widened where it is read.
_AS_READ = (Certainty.MEASURED, Certainty.CHIP)


class Relation(StrEnum):
    """How two options stand for a goal: one is faster, neither is by much, or the bars are too wide to say."""

    APART = "apart"
    TIE = "a tie"
    UNCLEAR = "too noisy to tell"


# The most that one figure of a tie lies above the other, as a factor. Where more lies between, bars that overlap hide a
# difference. On equal terms: runs of one bench on a quiet device differ by up to 2 %, so 5 % were disturbed. Else what
# two tools make of one file.
MOST_LOSS_ON_EQUAL_TERMS = 1.05
MOST_LOSS_OF_A_TIE = 1 + NEAR_WIDENING


def by_bars(one: Option, other: Option, goal: Goal) -> Relation:
    """Of two options that have figures."""
    first, second = one.standing(goal), other.standing(goal)
    assert first is not None and second is not None
    (low, high), (other_low, other_high) = _bars(first, second)
    if low > other_high or other_low > high:
        return Relation.APART
    slower, faster = sorted((first.value, second.value))
    most = MOST_LOSS_ON_EQUAL_TERMS if _is_alike(first, second) else MOST_LOSS_OF_A_TIE
    return Relation.TIE if faster <= most * slower else Relation.UNCLEAR


def is_wide(standing: Standing) -> bool:
    """Whether its own bar is wider than what a tie may hide: measuring again makes it narrower."""
    return standing.high > MOST_LOSS_ON_EQUAL_TERMS * standing.low


def weaker_level(first: Standing, second: Standing) -> str:
    """How two measured figures were compared, where that is not on equal terms; "" where it is, or one is no figure.

    As "≈: mlx_lm.benchmark tg64 beside llama-bench tg64".
    """
    if first.certainty not in _MEASURED or second.certainty not in _MEASURED or _is_alike(first, second):
        return ""
    one, other = first.conditions, second.conditions
    if one is None or other is None:
        return ""
    names = [_shared_out(one.client, other.client), _shared_out(one.test, other.test)]
    names += [_shared_out(one.host, other.host)]
    if one.backend == other.backend:
        names.append(_shared_out(one.version, other.version))
    pairs = [pair for pair in names if pair]
    return "≈: " + ", ".join(f"{left} beside {right}" for left, right in pairs)


def _shared_out(one: str, other: str) -> tuple[str, str] | None:
    return None if one == other else (one or "unknown", other or "unknown")


def _bars(first: Standing, second: Standing) -> tuple[tuple[float, float], tuple[float, float]]:
    if _is_alike(first, second):
        return _own(first), _own(second)
    both = first.certainty in _MEASURED and second.certainty in _MEASURED
    one, other = first.conditions, second.conditions
    other_test = both and one is not None and other is not None and (one.client, one.test) != (other.client, other.test)
    return _widened(first, other_test), _widened(second, other_test)


def _is_alike(first: Standing, second: Standing) -> bool:
    """Measured under the same conditions: what makes either unsure of the cell that was asked for is the same."""
    one, other = first.conditions, second.conditions
    known = first.share is not None and second.share is not None
    return known and one is not None and other is not None and one.are_those_of(other)


def _own(standing: Standing) -> tuple[float, float]:
    half = (standing.share or 0.0) * standing.value
    return standing.value - half, standing.value + half


def _widened(standing: Standing, by_another_test: bool) -> tuple[float, float]:
    if not by_another_test or standing.certainty not in _AS_READ:
        return standing.low, standing.high
    half = NEAR_WIDENING * standing.value
    return standing.low - half, standing.high + half
