"""When two options are one for a goal: figures whose error bars overlap, predictions that cannot be told apart."""

import math
from collections.abc import Mapping

from fleet_controller.choosing.bars import bars_overlap
from fleet_controller.choosing.known import SpeedSource
from fleet_controller.choosing.options import REQUEST_ANSWER_TOKENS, REQUEST_PROMPT_TOKENS, Certainty, Goal, Option
from fleet_controller.choosing.ranking import Tie
from fleet_controller.choosing.speed import SpeedModel
from fleet_controller.choosing.work import Cell, Phase

# What a tie may cost: where the slower of two is expected to be slower by more than this factor, not knowing for sure
# is no reason to take it.
MOST_EXPECTED_LOSS = 1.03
# What a goal is predicted from, with the tokens of each in one request.
TOKENS_OF_GOAL: Mapping[Goal, Mapping[Phase, int]] = {
    Goal.DECODE: {Phase.DECODE: REQUEST_ANSWER_TOKENS},
    Goal.PREFILL: {Phase.PREFILL: REQUEST_PROMPT_TOKENS},
    Goal.LATENCY: {Phase.PREFILL: REQUEST_PROMPT_TOKENS, Phase.DECODE: REQUEST_ANSWER_TOKENS},
}
# What one option's figures are predicted of.
Cells = Mapping[Phase, Cell]


def ties_of(model: SpeedSource, cells: Mapping[str, Cells], goal: Goal) -> Tie:
    """For options whose cells (by the option's name) the model predicts.

    Two predictions for one machine are off by much the same, so they are compared as a ratio; all else by error bars.
    Where little is known nearly everything could be a tie, so one that is expected to be clearly slower is none.
    """

    def tie(one: Option, other: Option) -> bool:
        both = cells.get(one.name), cells.get(other.name)
        if both[0] is None or both[1] is None or not all(is_predicted(option, goal) for option in (one, other)):
            return bars_overlap(one, other, goal)
        ratio = faster_by(model(), both[0], both[1], goal)
        if ratio is None:
            return bars_overlap(one, other, goal)
        low, high = ratio
        expected = math.sqrt(low * high)
        return low <= 1 <= high and max(expected, 1 / expected) <= MOST_EXPECTED_LOSS

    return tie


def is_predicted(option: Option, goal: Goal) -> bool:
    """Whether all that the goal is made of is a prediction."""
    figures = {Phase.DECODE: option.decode, Phase.PREFILL: option.prefill}
    found = [figures[phase] for phase in TOKENS_OF_GOAL.get(goal, {})]
    return bool(found) and all(one is not None and one.certainty is Certainty.PREDICTED for one in found)


def faster_by(model: SpeedModel, first: Cells, second: Cells, goal: Goal) -> tuple[float, float] | None:
    """The 80 % interval of the first's speed over the second's; None where the goal is not predicted from these cells.

    For a whole request each phase counts by its share of the first's time.
    """
    tokens = TOKENS_OF_GOAL.get(goal, {})
    if not tokens or not all(phase in first and phase in second for phase in tokens):
        return None
    seconds = {phase: count / model.predict(first[phase]).tokens_per_second for phase, count in tokens.items()}
    shares = {phase: part / sum(seconds.values()) for phase, part in seconds.items()}
    ratios = {phase: model.faster_by(first[phase], second[phase]) for phase in tokens}
    low, high = (sum(shares[phase] * ratios[phase][end] for phase in tokens) for end in (0, 1))
    return low, high
