"""The order of options on one machine: tiers that no speed overcomes, speed with ties, and preferences in a tie.

Of those that tie with the fastest and lie within its bar, what was measured goes before what was predicted, then better
quality where all were scored, then a longer context, then more bits a weight, then the faster; the last resort is the
order that fleet has without any figure.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from fleet_controller.choosing.bars import Relation
from fleet_controller.choosing.options import NEVER_PREDICTED, Certainty, Goal, Option, Standing
from fleet_controller.domain.plan import FitVerdict

# How two options stand in the goal.
Tie = Callable[[Option, Option], Relation]
_CERTAINTIES = list(Certainty)
_FITS_ORDER = (FitVerdict.FITS, FitVerdict.FITS_WITH_OFFLOAD, FitVerdict.UNSPECIFIED)


class Order(NamedTuple):
    """All options, the chosen one first; `tied` are the names of those that tie with the fastest (it included).

    `unclear` are those that may be as fast as the fastest: bars are too wide to tell.
    """

    options: tuple[Option, ...]
    tied: frozenset[str] = frozenset()
    unclear: frozenset[str] = frozenset()
    fastest: Option | None = None
    by_quality: bool = False


def standing_of(option: Option, goal: Goal) -> Standing:
    """How an option does in a goal; a standing of its own where nobody knows."""
    why = ": it is measured, never predicted" if goal in NEVER_PREDICTED else ""
    return option.standing(goal) or Standing(
        value=0.0, low=0.0, high=0.0, certainty=Certainty.UNKNOWN, unit="", text=f"no figure for {goal.value}{why}"
    )


class Tier(NamedTuple):
    """What goes before speed: taken without being asked for, all on the GPU, not held back, a figure at all."""

    on_request: bool
    fit: int
    held_back: bool
    unknown: bool


def tier_of(option: Option, goal: Goal) -> Tier:
    unknown = not standing_of(option, goal).is_known
    return Tier(bool(option.on_request), _FITS_ORDER.index(option.fit), bool(option.held_back), unknown)


def in_order(options: Sequence[Option], goal: Goal, tie: Tie) -> Order:
    """The order of options that may be chosen."""
    if not options:
        return Order(())
    by_value = sorted(options, key=lambda option: (tier_of(option, goal), *_by_speed(option, goal)))
    fastest = by_value[0]
    tier = tier_of(fastest, goal)
    equals = [option for option in by_value if tier_of(option, goal) == tier]
    stand = {option.name: _relation(option, fastest, goal, tie) for option in equals}
    tied = [option for option in equals if stand[option.name] is Relation.TIE]
    scored = all(option.quality is not None for option in tied)
    tied.sort(key=lambda option: (is_below(option, fastest, goal), *preference(option, goal, scored)))
    names = frozenset(option.name for option in tied)
    rest = (option for option in by_value if option.name not in names)
    unclear = frozenset(name for name, relation in stand.items() if relation is Relation.UNCLEAR)
    return Order((*tied, *rest), names, unclear, fastest, scored)


def is_below(option: Option, fastest: Option, goal: Goal) -> bool:
    """Whether its figure lies below the fastest's bar, although their bars overlap: its own is wide."""
    return option is not fastest and standing_of(option, goal).value < standing_of(fastest, goal).low


def _relation(option: Option, fastest: Option, goal: Goal, tie: Tie) -> Relation:
    if option is fastest:
        return Relation.TIE
    speeds_say = fastest.fit is FitVerdict.FITS and standing_of(fastest, goal).is_known
    return tie(fastest, option) if speeds_say else Relation.APART


def _by_speed(option: Option, goal: Goal) -> tuple[float, float, int, str]:
    """Where part of a model lies on the CPU, how much that is decides: figures are of whole models on the GPU."""
    return option.offload_bytes, -standing_of(option, goal).value, option.place, option.name


def preference(option: Option, goal: Goal, by_quality: bool) -> tuple[float, ...]:
    """What decides in a tie, the least first; `by_quality`: all that tie were scored."""
    standing = standing_of(option, goal)
    quality = option.quality.score if by_quality and option.quality else 0.0
    certainty = _CERTAINTIES.index(standing.certainty)
    bits = -round(option.bits_per_weight, 1)
    return certainty, -quality, -option.context_tokens, bits, -standing.value, option.place
