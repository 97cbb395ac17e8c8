"""How two options stand for a goal: by the bars of their figures; two predictions by the interval of their ratio."""

import math
from collections.abc import Mapping

from fleet_controller.choosing.bars import Relation, by_bars
from fleet_controller.choosing.known import SpeedSource
from fleet_controller.choosing.options import REQUEST_ANSWER_TOKENS, REQUEST_PROMPT_TOKENS, Certainty, Goal, Option
from fleet_controller.choosing.ranking import Tie
from fleet_controller.choosing.speed import SpeedModel
from fleet_controller.choosing.work import Cell, Phase

# What a tie of predictions may cost: where the slower of two is expected to be slower by more than this factor, not
# knowing for sure is no reason to take it.
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

    return lambda one, other: relation(one, other, goal, cells.get(one.name), cells.get(other.name), model)


def relation(
    one: Option, other: Option, goal: Goal, made_of: Cells | None, others: Cells | None, model: SpeedSource
) -> Relation:
    """`made_of` and `others` are what predictions of the two are made of, None where they cannot be predicted."""
    ratio = None
    if made_of is not None and others is not None and all(is_predicted(option, goal) for option in (one, other)):
        ratio = faster_by(model(), made_of, others, goal)
    if ratio is None:
        return by_bars(one, other, goal)
    low, high = ratio
    expected = math.sqrt(low * high)
    is_tie = low <= 1 <= high and max(expected, 1 / expected) <= MOST_EXPECTED_LOSS
    return Relation.TIE if is_tie else Relation.APART


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
