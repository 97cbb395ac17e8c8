"""Which option wins on one machine, and why: fit, then a floor on quality, then speed. Pure and deterministic.

Error bars that overlap are a tie and are called one. Of those that tie with the fastest and lie within its bar, what was
measured goes before what was predicted, then better quality, then a longer context, then more bits a weight, then the
faster; the last resort is the order that fleet has without any figure. What is taken on request only, what lies partly on the CPU, what is held back and what nobody
knows a figure of go behind.
"""

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from fleet_controller.choosing import reasons
from fleet_controller.choosing.bars import bars_overlap, weaker_level
from fleet_controller.choosing.options import Certainty, Goal, Option, Standing
from fleet_controller.domain.base import Frozen
from fleet_controller.domain.plan import FitVerdict

# Whether two options are a tie in the goal; the default looks whether their intervals overlap.
Tie = Callable[[Option, Option], bool]
_CERTAINTIES = list(Certainty)
_FITS_ORDER = (FitVerdict.FITS, FitVerdict.FITS_WITH_OFFLOAD, FitVerdict.UNSPECIFIED)


class WhyNot(StrEnum):
    """Why an option is not in the ranking."""

    UNUSABLE = "unusable"
    MEMORY = "memory"
    QUALITY = "quality"


class RuledOut(Frozen):
    option: Option
    why: WhyNot
    text: str


class Ranked(Frozen):
    """An option with its place (from 1); `ties_with_first` is about the goal alone; `reasons` are for the user.

    `comparison` is the one of them that sets the first against the second, or another against the first.
    """

    place: int
    option: Option
    standing: Standing
    ties_with_first: bool
    reasons: tuple[str, ...]
    comparison: str = ""


class Decision(Frozen):
    """The best first. `pareto` are the names of options that nothing beats in both speed and quality, fastest first.

    `to_measure` are the names of options of which a measurement can still change what is first.
    """

    goal: Goal
    ranked: tuple[Ranked, ...] = ()
    ruled_out: tuple[RuledOut, ...] = ()
    pareto: tuple[str, ...] = ()
    pareto_by: str = ""
    would_change: tuple[str, ...] = ()
    to_measure: tuple[str, ...] = ()

    @property
    def chosen(self) -> Ranked | None:
        return self.ranked[0] if self.ranked else None


def decide(
    options: Iterable[Option], goal: Goal = Goal.DECODE, quality_floor: float | None = None, tie: Tie | None = None
) -> Decision:
    """Rank what fits and is good enough. `tie` says when two options are one for the goal (default: bars overlap).

    Raises ValueError where two options have one name.
    """
    candidates = sorted(options, key=lambda option: option.name)
    names = [option.name for option in candidates]
    if len(set(names)) < len(names):
        raise ValueError(f"two options are called {next(name for name in names if names.count(name) > 1)}")
    ruled_out = [found for option in candidates if (found := _rule_out(option, quality_floor)) is not None]
    gone = {item.option.name for item in ruled_out}
    left = [option for option in candidates if option.name not in gone]
    ordered, tied = _order(left, goal, tie or (lambda one, other: bars_overlap(one, other, goal)))
    ranked = tuple(_ranked(place, option, ordered, tied, goal) for place, option in enumerate(ordered, start=1))
    rivals = _rivals(ordered, goal)
    pareto, by = _pareto(ordered, goal)
    return Decision(
        goal=goal,
        ranked=ranked,
        ruled_out=tuple(ruled_out),
        pareto=pareto,
        pareto_by=by,
        would_change=tuple(_would_change(ordered, rivals, ruled_out, goal)),
        to_measure=tuple(option.name for option in rivals),
    )


def standing_of(option: Option, goal: Goal) -> Standing:
    """How an option does in a goal; a standing of its own where nobody knows."""
    return option.standing(goal) or Standing(
        value=0.0, low=0.0, high=0.0, certainty=Certainty.UNKNOWN, unit="", text=f"no figure for {goal.value}"
    )


def _rule_out(option: Option, floor: float | None) -> RuledOut | None:
    if option.excluded:
        return RuledOut(option=option, why=WhyNot.UNUSABLE, text=option.excluded)
    if option.fit is FitVerdict.REFUSED:
        return RuledOut(option=option, why=WhyNot.MEMORY, text=option.fit_text or "does not fit")
    if floor is None:
        return None
    quality = option.quality
    if quality is None:
        text = f"quality unknown, {floor:g} asked for: `fleet eval` measures it"
        return RuledOut(option=option, why=WhyNot.QUALITY, text=text)
    if quality.high < floor:
        return RuledOut(option=option, why=WhyNot.QUALITY, text=f"{reasons.score(quality)} is below {floor:g}")
    return None


class _Tier(NamedTuple):
    """What goes before speed: taken without being asked for, all on the GPU, not held back, a figure at all."""

    on_request: bool
    fit: int
    held_back: bool
    unknown: bool


def _tier(option: Option, goal: Goal) -> _Tier:
    unknown = not standing_of(option, goal).is_known
    return _Tier(bool(option.on_request), _FITS_ORDER.index(option.fit), bool(option.held_back), unknown)


def _order(options: Sequence[Option], goal: Goal, tie: Tie) -> tuple[list[Option], frozenset[str]]:
    """All options, the chosen one first, and the names of those that tie with the fastest of its tier (it included)."""
    if not options:
        return [], frozenset()
    by_value = sorted(options, key=lambda option: (_tier(option, goal), *_by_speed(option, goal)))
    fastest = by_value[0]
    tier = _tier(fastest, goal)
    tied = [option for option in by_value if _tier(option, goal) == tier and _ties(option, fastest, goal, tie)]
    tied.sort(key=lambda option: (_is_below(option, fastest, goal), *_preference(option, goal)))
    names = frozenset(option.name for option in tied)
    return [*tied, *(option for option in by_value if option.name not in names)], names


def _is_below(option: Option, fastest: Option, goal: Goal) -> bool:
    """Whether its figure lies below the fastest's bar, although their bars overlap: its own is wide."""
    return option is not fastest and standing_of(option, goal).value < standing_of(fastest, goal).low


def _ties(option: Option, fastest: Option, goal: Goal, tie: Tie) -> bool:
    if option is fastest:
        return True
    speeds_say = fastest.fit is FitVerdict.FITS and standing_of(fastest, goal).is_known
    return speeds_say and tie(fastest, option)


def _by_speed(option: Option, goal: Goal) -> tuple[float, float, int, str]:
    """Where part of a model lies on the CPU, how much that is decides: figures are of whole models on the GPU."""
    return option.offload_bytes, -standing_of(option, goal).value, option.place, option.name


def _preference(option: Option, goal: Goal) -> tuple[float, ...]:
    standing = standing_of(option, goal)
    quality = option.quality.score if option.quality else 0.0
    certainty = _CERTAINTIES.index(standing.certainty)
    bits = -round(option.bits_per_weight, 1)
    return certainty, -quality, -option.context_tokens, bits, -standing.value, option.place


def _ranked(place: int, option: Option, ordered: Sequence[Option], tied: frozenset[str], goal: Goal) -> Ranked:
    standing = standing_of(option, goal)
    comparison = _comparison(place, option, ordered, tied, goal)
    scored = reasons.score(option.quality) if option.quality else ""
    found = (
        reasons.fit(option),
        reasons.figure(option, standing),
        comparison,
        scored,
        option.held_back,
        option.on_request,
        *option.notes,
    )
    return Ranked(
        place=place,
        option=option,
        standing=standing,
        ties_with_first=option.name in tied and place > 1,
        reasons=tuple(reason for reason in found if reason),
        comparison=comparison,
    )


def _comparison(place: int, option: Option, ordered: Sequence[Option], tied: frozenset[str], goal: Goal) -> str:
    if place > 1:
        return "" if option.name in tied else _behind(option, ordered, tied, goal)
    if len(ordered) == 1:
        return ""
    second = ordered[1]
    if second.name in tied:
        below = standing_of(second, goal).value < standing_of(option, goal).low
        why = f"taken since {second.name} lies below its bar"
        differing = why if below else _first_difference(option, second, goal)
        return f"a tie with {second.name}{_weakly(option, second, goal)}, {differing}"
    return _apart(option, second, goal) if _tier(option, goal) == _tier(second, goal) else ""


def _apart(option: Option, second: Option, goal: Goal) -> str:
    if not standing_of(option, goal).is_known:
        return f"before {second.name} in fleet's own order: no figure speaks for either"
    if option.offload_bytes != second.offload_bytes:
        return f"less of it lies on the CPU than of {second.name}"
    return f"{_more(option, second, goal)} ahead of {second.name}{_weakly(option, second, goal)}"


def _behind(option: Option, ordered: Sequence[Option], tied: frozenset[str], goal: Goal) -> str:
    first = ordered[0]
    mine, theirs = _tier(option, goal), _tier(first, goal)
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
        fastest = max((one for one in ordered if one.name in tied), key=lambda one: standing_of(one, goal).value)
        return f"{_less(option, fastest, goal)} behind {fastest.name}, with which the first is a tie"
    return f"{_less(option, first, goal)} behind {first.name}{_weakly(option, first, goal)}"


def _less(slower: Option, faster: Option, goal: Goal) -> str:
    return reasons.percent(1 - standing_of(slower, goal).value / standing_of(faster, goal).value)


def _faster_but(option: Option, first: Option, goal: Goal, why: str) -> str:
    one, other = standing_of(option, goal), standing_of(first, goal)
    if option.fit is first.fit is FitVerdict.FITS and one.is_known and other.is_known and one.value > other.value:
        return f"{_more(option, first, goal)} ahead of {first.name}{_weakly(option, first, goal)}, and {why}"
    return f"behind {first.name}: {why}"


def _weakly(one: Option, other: Option, goal: Goal) -> str:
    """How two options were compared, where that was not on equal terms."""
    text = weaker_level(standing_of(one, goal), standing_of(other, goal))
    return f" ({text})" if text else ""


def _more(faster: Option, slower: Option, goal: Goal) -> str:
    return reasons.percent(standing_of(faster, goal).value / standing_of(slower, goal).value - 1)


def _first_difference(option: Option, other: Option, goal: Goal) -> str:
    """The first preference in which the two differ."""
    mine, theirs = _preference(option, goal), _preference(other, goal)
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


def _pareto(options: Sequence[Option], goal: Goal) -> tuple[tuple[str, ...], str]:
    """What nothing beats in both; by measured quality where all have it, else by bits a weight in its stead.

    Of what fits as the chosen one does, since speeds are of whole models on the GPU, and is taken as it is.
    """
    is_asked_for = bool(options and options[0].on_request)
    comparable = [
        one
        for one in options
        if standing_of(one, goal).is_known and one.fit is options[0].fit and bool(one.on_request) == is_asked_for
    ]
    if not comparable:
        return (), ""
    measured = all(option.quality is not None for option in comparable)

    def goodness(option: Option) -> float:
        return option.quality.score if measured and option.quality else round(option.bits_per_weight, 1)

    by_speed = sorted(comparable, key=lambda one: (-standing_of(one, goal).value, -goodness(one), one.name))
    front: list[Option] = []
    for option in by_speed:
        if not front or goodness(option) > goodness(front[-1]):
            front.append(option)
    name = next((option.quality.name for option in comparable if measured and option.quality), "bits a weight")
    return tuple(option.name for option in front), name


def _rivals(ordered: Sequence[Option], goal: Goal) -> list[Option]:
    """Options of which a measurement could put another one first; none where no bar reaches the first's."""
    if not ordered:
        return []
    first, standing = ordered[0], standing_of(ordered[0], goal)
    reaching = [
        option
        for option in ordered[1:]
        if option.fit is first.fit
        and not (option.held_back or option.on_request)
        and option.offload_bytes == first.offload_bytes
        and (not (one := standing_of(option, goal)).is_known or not standing.is_known or one.high > standing.low)
    ]
    unsure = (Certainty.NEAR, Certainty.PREDICTED, Certainty.UNKNOWN)
    return [one for one in (first, *reaching) if reaching and standing_of(one, goal).certainty in unsure]


def _would_change(
    ordered: Sequence[Option], rivals: Sequence[Option], ruled_out: Sequence[RuledOut], goal: Goal
) -> Iterable[str]:
    """Measurements and changes that could put another option first."""
    refused = [item.option for item in ruled_out if item.why is WhyNot.MEMORY]
    if not ordered:
        yield from _shorter_contexts(refused)
        return
    first = ordered[0]
    yield from (reasons.measuring(option, standing_of(option, goal)) for option in rivals)
    for option in ordered:
        yield from _option_changes(option, first, goal)
    yield from _shorter_contexts([*ordered, *refused])
    for item in ruled_out:
        standing = item.option.standing(goal)
        if item.why is WhyNot.MEMORY and standing is not None and standing.value > standing_of(first, goal).value:
            yield f"more memory for {item.option.name}: {item.text}"


def _option_changes(option: Option, first: Option, goal: Goal) -> Iterable[str]:
    one, other = standing_of(option, goal), standing_of(first, goal)
    faster = option.fit is first.fit and one.value > other.value > 0
    if option.on_request:
        if faster and not option.held_back and not bars_overlap(option, first, goal):
            yield f"--backend {option.backend}: {option.name} is {_more(option, first, goal)} ahead, {one.certainty.value}"
        return
    if faster and option.held_back and not first.held_back:
        yield f"a score of {option.name}: `fleet eval` measures it"


def _shorter_contexts(ordered: Sequence[Option]) -> Iterable[str]:
    """As "--context 65536: llama.cpp Q4_K_M, llama.cpp Q8_0 would fit entirely", the longest first."""
    names: dict[int, list[str]] = {}
    for option in ordered:
        shorter = 0 < option.fully_fitting_context < option.context_tokens
        if option.fit is not FitVerdict.FITS and shorter and not option.on_request:
            names.setdefault(option.fully_fitting_context, []).append(option.name)
    for context in sorted(names, reverse=True):
        yield f"--context {context}: {', '.join(names[context])} would fit entirely"
