"""Which context to take where nobody asked for one, and the longest that fits. Pure."""

from collections.abc import Callable

from fleet_controller.domain.plan import FitVerdict
from fleet_controller.planning.fit import Fit

# Caches come in whole numbers of this many tokens, so a context in between takes as much as the next one.
GRAIN_TOKENS = 256


def largest_context(judge: Callable[[int], Fit], longest: int, verdicts: tuple[FitVerdict, ...]) -> int | None:
    """The longest context, up to `longest`, whose verdict is one of these; None where none is.

    More context never takes less memory, so it is found by halving the range.
    """
    if judge(longest).verdict in verdicts:
        return longest
    low, high = 0, -(-longest // GRAIN_TOKENS)  # in grains: `low` fits (or is nothing), `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        if judge(middle * GRAIN_TOKENS).verdict in verdicts:
            low = middle
        else:
            high = middle
    return low * GRAIN_TOKENS or None
