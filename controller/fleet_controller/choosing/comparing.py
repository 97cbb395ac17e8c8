"""One option against another, in words."""

from fleet_controller.choosing import reasons
from fleet_controller.choosing.bars import Relation, weaker_level
from fleet_controller.choosing.options import Certainty, Goal, Option
from fleet_controller.choosing.ranking import Order, is_below, preference, standing_of, tier_of
from fleet_controller.domain.plan import FitVerdict


def comparison(place: int, option: Option, order: Order, goal: Goal) -> str:
    """The first against the second, another against the first; "" where there is nothing to say."""
    if place > 1:
        return "" if option.name in order.tied else _behind(option, order, goal)
    if len(order.options) == 1:
        return ""
    second = order.options[1]
    if second.name in order.tied:
        below = f"taken since {second.name} lies below its bar"
        differing = below if is_below(second, option, goal) else _first_difference(option, second, order, goal)
        return f"a tie with {second.name}{_weakly(option, second, goal)}, {differing}"
    return _apart(option, second, order, goal) if tier_of(option, goal) == tier_of(second, goal) else ""


def _apart(option: Option, second: Option, order: Order, goal: Goal) -> str:
    if not standing_of(option, goal).is_known:
        return f"before {second.name} in fleet's own order: no figure speaks for either"
    if option.offload_bytes != second.offload_bytes:
        return f"less of it lies on the CPU than of {second.name}"
    ahead = f"{ahead_by(option, second, goal)} ahead of {second.name}"
    return f"{ahead}{_weakly(option, second, goal)}{_noisy(second, order, goal)}"


def _behind(option: Option, order: Order, goal: Goal) -> str:
    first = order.options[0]
    mine, theirs = tier_of(option, goal), tier_of(first, goal)
    if mine.on_request != theirs.on_request:
        return _faster_but(option, first, goal, "on request only")
    if mine.fit != theirs.fit:
        return f"behind {first.name}, which fits entirely" if first.fit is FitVerdict.FITS else f"behind {first.name}"
    if mine.held_back != theirs.held_back:
        return _faster_but(option, first, goal, "held back")
    if mine.unknown != theirs.unknown:
        return f"behind {first.name}, of which a figure is known"
    if not standing_of(option, goal).is_known:
        return f"behind {first.name} in fleet's own order"
    if option.offload_bytes != first.offload_bytes:
        return f"more of it lies on the CPU than of {first.name}"
    if standing_of(option, goal).value > standing_of(first, goal).value:
        fastest = order.fastest or first
        return f"{_less(option, fastest, goal)} behind {fastest.name}, with which the first is a tie"
    return (
        f"{_less(option, first, goal)} behind {first.name}{_weakly(option, first, goal)}{_noisy(option, order, goal)}"
    )


def _noisy(option: Option, order: Order, goal: Goal) -> str:
    """Where bars overlap so far that the figures alone do not say which is faster."""
    if option.name not in order.unclear:
        return ""
    pair = (option, order.fastest or option)
    guessed = any(standing_of(one, goal).certainty is Certainty.PREDICTED for one in pair)
    return f", but {Relation.UNCLEAR.value}: measure {'both' if guessed else 'again'}"


def _less(slower: Option, faster: Option, goal: Goal) -> str:
    return reasons.percent(1 - standing_of(slower, goal).value / standing_of(faster, goal).value)


def _faster_but(option: Option, first: Option, goal: Goal, why: str) -> str:
    one, other = standing_of(option, goal), standing_of(first, goal)
    if option.fit is first.fit is FitVerdict.FITS and one.is_known and other.is_known and one.value > other.value:
        return f"{ahead_by(option, first, goal)} ahead of {first.name}{_weakly(option, first, goal)}, and {why}"
    return f"behind {first.name}: {why}"


def _weakly(one: Option, other: Option, goal: Goal) -> str:
    """How two options were compared, where that was not on equal terms."""
    text = weaker_level(standing_of(one, goal), standing_of(other, goal))
    return f" ({text})" if text else ""


def ahead_by(faster: Option, slower: Option, goal: Goal) -> str:
    """As "12 %"."""
    return reasons.percent(standing_of(faster, goal).value / standing_of(slower, goal).value - 1)


def _first_difference(option: Option, other: Option, order: Order, goal: Goal) -> str:
    """The first preference in which the two differ."""
    mine, theirs = (preference(one, goal, order.by_quality) for one in (option, other))
    words = (
        f"taken since it was {standing_of(option, goal).certainty.value}",
        "taken for its quality",
        f"taken for its context of {option.context_tokens:,} tokens",
        f"taken for its {option.bits_per_weight:.1f} bits a weight",
        "taken as the faster",
        "taken in fleet's own order",
    )
    found = (text for text, one, two in zip(words, mine, theirs, strict=True) if one != two)
    return next(found, "taken by name")
