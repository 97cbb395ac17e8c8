"""When two options are one for a goal: figures whose error bars overlap, predictions that cannot be told apart."""

import math
from collections.abc import Mapping

from fleet_controller.choosing.bars import bars_overlap
from fleet_controller.choosing.known import SpeedSource
from fleet_controller.choosing.options import Certainty, Goal, Option
from fleet_controller.choosing.ranking import Tie
from fleet_controller.choosing.work import Cell

# What a tie may cost: where the slower of two is expected to be slower by more than this factor, not knowing for sure
# is no reason to take it.
MOST_EXPECTED_LOSS = 1.03


def ties_of(model: SpeedSource, cells: Mapping[str, Cell], goal: Goal) -> Tie:
    """For options whose cells (by the option's name, of the goal's phase) the model predicts.

    Two predictions for one machine are off by much the same, so they are compared as a ratio; all else by error bars.
    Where little is known nearly everything could be a tie, so one that is expected to be clearly slower is none.
    """

    def tie(one: Option, other: Option) -> bool:
        predicted = all(
            (standing := option.standing(goal)) is not None
            and standing.certainty is Certainty.PREDICTED
            and option.name in cells
            for option in (one, other)
        )
        if not predicted or cells[one.name].phase is not cells[other.name].phase:
            return bars_overlap(one, other, goal)
        low, high = model().faster_by(cells[one.name], cells[other.name])
        expected = math.sqrt(low * high)
        return low <= 1 <= high and max(expected, 1 / expected) <= MOST_EXPECTED_LOSS

    return tie
