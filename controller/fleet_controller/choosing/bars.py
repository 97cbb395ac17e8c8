"""Whether the error bars of two figures overlap, on the level of comparability that the two have. Pure."""

from fleet_controller.choosing.options import Certainty, Goal, Option, Standing
from fleet_controller.results.comparability import NEAR_WIDENING

_MEASURED = (Certainty.MEASURED, Certainty.CHIP, Certainty.NEAR)
# Their bars are those of the row itself; a near one is widened where it is read.
_AS_READ = (Certainty.MEASURED, Certainty.CHIP)


def bars_overlap(one: Option, other: Option, goal: Goal) -> bool:
    """Whether the intervals of two options that have figures overlap."""
    first, second = one.standing(goal), other.standing(goal)
    assert first is not None and second is not None
    (low, high), (other_low, other_high) = _bars(first, second)
    return low <= other_high and other_low <= high


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
