"""Two levels of comparability. Pure.

Equal: one fingerprint. Figures of different fingerprints are never averaged.
Near (shown with ≈): the same metric of the same thing on the same chip, but another client, version or near depth. Good
enough to choose by, with a wider interval; never called a measurement of the cell that was asked for.
"""

from collections.abc import Iterable
from enum import StrEnum

from fleet_controller.results.columns import Result
from fleet_controller.results.statistics import interval_of

# Two depths are near within an eighth of the deeper one, and below 2048 tokens (the longest prefill test of the notes).
NEAR_DEPTH_TOKENS = 2048
NEAR_DEPTH_DIVISOR = 8
# The notes measured one file with llama-bench and llama-benchy: decode differed by at most 16.6 % (at depth 32768).
NEAR_WIDENING = 0.17

NEAR_COLUMNS = ("chip", "device_count", "model", "quantization", "backend", "test_kind", "concurrency")


class Level(StrEnum):
    EQUAL = "equal"
    NEAR = "near"
    NONE = "none"


def depth_range(depth: int) -> tuple[int, int]:
    """The least and the most depth that are near."""
    tolerance = max(NEAR_DEPTH_TOKENS, depth // NEAR_DEPTH_DIVISOR)
    return max(0, depth - tolerance), depth + tolerance


def near_depth(first: int, second: int) -> bool:
    low, high = depth_range(max(first, second))
    return low <= first <= high and low <= second <= high


def comparability(first: Result, second: Result) -> Level:
    """How far two rows may be compared; names of models are compared without case."""
    if first.fingerprint_id == second.fingerprint_id:
        return Level.EQUAL
    same = all(_plain(getattr(first, name)) == _plain(getattr(second, name)) for name in NEAR_COLUMNS)
    known = bool(first.model and first.chip)
    return Level.NEAR if same and known and near_depth(first.depth, second.depth) else Level.NONE


def nearest(wanted: Result, rows: Iterable[Result]) -> list[tuple[Level, Result]]:
    """Rows that say something about `wanted`: equal ones first, then near ones by depth, the newest first."""
    found = [(comparability(wanted, row), row) for row in rows]
    usable = [(level, row) for level, row in found if level is not Level.NONE]
    order = {Level.EQUAL: 0, Level.NEAR: 1}
    return sorted(
        usable, key=lambda item: (order[item[0]], abs(item[1].depth - wanted.depth), -item[1].finished_unix_ms)
    )


def error_bar(result: Result, level: Level = Level.EQUAL) -> tuple[float, float] | None:
    """The 95 % interval of the mean where repetitions are known, else mean ± deviation, else the mean alone.

    A near row's bar is widened on both sides. None where there is no mean.
    """
    if result.mean is None:
        return None
    deviation = result.deviation or 0.0
    low, high = interval_of(result) or (result.mean - deviation, result.mean + deviation)
    if level is Level.NEAR:
        low, high = low - NEAR_WIDENING * result.mean, high + NEAR_WIDENING * result.mean
    return low, high


def _plain(value: object) -> object:
    return value.casefold() if isinstance(value, str) else value
