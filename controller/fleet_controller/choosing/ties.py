"""When two options are one for a goal: figures whose error bars overlap, predictions that cannot be told apart."""

from collections.abc import Mapping

from fleet_controller.choosing.decision import Tie, bars_overlap
from fleet_controller.choosing.options import Certainty, Goal, Option
from fleet_controller.choosing.speed import SpeedModel
from fleet_controller.choosing.work import Cell


def ties_of(model: SpeedModel, cells: Mapping[str, Cell], goal: Goal) -> Tie:
    """For options whose cells (by the option's name) the model predicts.

    Two predictions for one machine are off by much the same, so they are compared as a ratio; all else by error bars.
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
        low, high = model.faster_by(cells[one.name], cells[other.name])
        return low <= 1 <= high

    return tie
