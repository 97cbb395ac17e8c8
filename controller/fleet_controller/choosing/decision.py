"""Which option wins on one machine, and why: fit, then a floor on quality, then speed. Pure and deterministic.

Error bars that overlap are a tie and are called one. In a tie what was measured goes before what was predicted, then
better quality, then more bits a weight, then the faster; the last resort is the name.
"""

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum

from fleet_controller.choosing.options import Certainty, Goal, Option, Standing
from fleet_controller.domain.base import Frozen
from fleet_controller.domain.plan import FitVerdict
from fleet_controller.domain.sizes import gibibytes

# Whether two options are a tie in the goal; the default looks whether their intervals overlap.
Tie = Callable[[Option, Option], bool]
_CERTAINTIES = list(Certainty)
_PERCENT = 100
_UNSURE = {Certainty.NEAR: "known from a near cell only", Certainty.PREDICTED: "a prediction"}


class WhyNot(StrEnum):
    """Why an option is not in the ranking."""

    MEMORY = "memory"
    QUALITY = "quality"
    NO_FIGURE = "no figure"


class RuledOut(Frozen):
    option: Option
    why: WhyNot
    text: str


class Ranked(Frozen):
    """An option with its place (from 1); `ties_with_first` is about the goal alone; `reasons` are for the user."""

    place: int
    option: Option
    standing: Standing
    ties_with_first: bool
    reasons: tuple[str, ...]


class Decision(Frozen):
    """The best first. `pareto` are the names of options that nothing beats in both speed and quality, fastest first."""

    goal: Goal
    ranked: tuple[Ranked, ...] = ()
    ruled_out: tuple[RuledOut, ...] = ()
    pareto: tuple[str, ...] = ()
    pareto_by: str = ""
    would_change: tuple[str, ...] = ()

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
    ruled_out = [found for option in candidates if (found := _rule_out(option, goal, quality_floor)) is not None]
    gone = {item.option.name for item in ruled_out}
    left = [option for option in candidates if option.name not in gone]
    ordered, tied = _order(left, goal, tie or (lambda one, other: bars_overlap(one, other, goal)))
    ranked = tuple(
        Ranked(
            place=place,
            option=option,
            standing=_standing(option, goal),
            ties_with_first=option.name in tied and place > 1,
            reasons=_reasons(place, option, ordered, tied, goal),
        )
        for place, option in enumerate(ordered, start=1)
    )
    pareto, by = _pareto(left, goal)
    return Decision(
        goal=goal,
        ranked=ranked,
        ruled_out=tuple(ruled_out),
        pareto=pareto,
        pareto_by=by,
        would_change=_would_change(ordered, ruled_out, goal),
    )


def _standing(option: Option, goal: Goal) -> Standing:
    found = option.standing(goal)
    assert found is not None  # options without one are ruled out first
    return found


def _rule_out(option: Option, goal: Goal, floor: float | None) -> RuledOut | None:
    if option.fit is FitVerdict.REFUSED:
        return RuledOut(option=option, why=WhyNot.MEMORY, text=option.fit_text or "does not fit")
    if floor is not None:
        quality = option.quality
        if quality is None:
            text = f"quality unknown, {floor:g} asked for: `fleet eval` measures it"
            return RuledOut(option=option, why=WhyNot.QUALITY, text=text)
        if quality.high < floor:
            bar = f"{quality.score:g} ({quality.low:g} to {quality.high:g})"
            return RuledOut(option=option, why=WhyNot.QUALITY, text=f"{quality.name} {bar} is below {floor:g}")
    if option.standing(goal) is None:
        return RuledOut(option=option, why=WhyNot.NO_FIGURE, text=f"no figure for {goal.value}, and none predicted")
    return None


def bars_overlap(one: Option, other: Option, goal: Goal) -> bool:
    """Whether the intervals of two options that have figures overlap."""
    first, second = _standing(one, goal), _standing(other, goal)
    return first.low <= second.high and second.low <= first.high


def _order(options: Sequence[Option], goal: Goal, tie: Tie) -> tuple[list[Option], frozenset[str]]:
    """All options, the chosen one first, and the names of those that tie with the fastest (it included)."""
    if not options:
        return [], frozenset()
    by_value = sorted(options, key=lambda option: (-_standing(option, goal).value, option.name))
    fastest = by_value[0]
    tied = [option for option in by_value if option is fastest or tie(fastest, option)]
    tied.sort(key=lambda option: _preference(option, goal))
    names = frozenset(option.name for option in tied)
    return [*tied, *(option for option in by_value if option.name not in names)], names


def _preference(option: Option, goal: Goal) -> tuple[int, float, float, float, str]:
    standing = _standing(option, goal)
    quality = option.quality.score if option.quality else 0.0
    certainty = _CERTAINTIES.index(standing.certainty)
    return certainty, -quality, -round(option.bits_per_weight, 1), -standing.value, option.name


def _reasons(
    place: int, option: Option, ordered: Sequence[Option], tied: frozenset[str], goal: Goal
) -> tuple[str, ...]:
    standing = _standing(option, goal)
    reasons = [_fit_reason(option), standing.text]
    if place > 1 and option.name not in tied:
        reasons.append(f"{_behind(option, ordered[0], goal)} behind {ordered[0].name}")
    elif place == 1 and len(ordered) > 1:
        reasons.append(_ahead(option, ordered[1], tied, goal))
    if option.quality:
        quality = option.quality
        reasons.append(f"{quality.name} {quality.score:g} ({quality.low:g} to {quality.high:g})")
    return tuple(reason for reason in (*reasons, *option.notes) if reason)


def _fit_reason(option: Option) -> str:
    if option.fit is FitVerdict.FITS and option.margin_bytes is not None:
        return f"fits with {gibibytes(option.margin_bytes)} to spare"
    return option.fit_text or ("fits" if option.fit is FitVerdict.FITS else "whether it fits is not known")


def _ahead(option: Option, second: Option, tied: frozenset[str], goal: Goal) -> str:
    if second.name in tied:
        return f"a tie with {second.name}, {_taken_because(option, second, goal)}"
    return f"{_by(option, second, goal)} ahead of {second.name}"


def _by(faster: Option, slower: Option, goal: Goal) -> str:
    more = _standing(faster, goal).value / _standing(slower, goal).value - 1
    return f"{more * _PERCENT:.0f} %"


def _behind(slower: Option, faster: Option, goal: Goal) -> str:
    less = 1 - _standing(slower, goal).value / _standing(faster, goal).value
    return f"{less * _PERCENT:.0f} %"


def _taken_because(option: Option, other: Option, goal: Goal) -> str:
    """The first preference in which the two differ."""
    mine, theirs = _preference(option, goal), _preference(other, goal)
    words = (
        f"taken since it was {_standing(option, goal).certainty.value}",
        "taken for its quality",
        f"taken for its {option.bits_per_weight:.1f} bits a weight",
        "taken as the faster",
        "taken by name",
    )
    return next(text for text, one, two in zip(words, mine, theirs, strict=True) if one != two)


def _pareto(options: Sequence[Option], goal: Goal) -> tuple[tuple[str, ...], str]:
    """What nothing beats in both; by measured quality where all have it, else by bits a weight in its stead."""
    if not options:
        return (), ""
    measured = all(option.quality is not None for option in options)

    def goodness(option: Option) -> float:
        return option.quality.score if measured and option.quality else round(option.bits_per_weight, 1)

    by_speed = sorted(options, key=lambda option: (-_standing(option, goal).value, -goodness(option), option.name))
    front: list[Option] = []
    for option in by_speed:
        if not front or goodness(option) > goodness(front[-1]):
            front.append(option)
    name = next((option.quality.name for option in options if measured and option.quality), "bits a weight")
    return tuple(option.name for option in front), name


def _would_change(ordered: Sequence[Option], ruled_out: Sequence[RuledOut], goal: Goal) -> tuple[str, ...]:
    """Measurements and changes that could put another option first; none where no bar reaches the first's."""
    if not ordered:
        return tuple(f"{item.option.name}: {item.text}" for item in ruled_out)
    first = _standing(ordered[0], goal)
    rivals = [option for option in ordered[1:] if _standing(option, goal).high > first.low]
    changes = [
        f"measuring {option.name}: {standing.low:.4g} to {standing.high:.4g} {standing.unit} is {unsure}"
        for option in (ordered[0], *rivals)
        if rivals and (unsure := _UNSURE.get((standing := _standing(option, goal)).certainty))
    ]
    for item in ruled_out:
        standing_out = item.option.standing(goal)
        if item.why is WhyNot.MEMORY and standing_out is not None and standing_out.value > first.value:
            changes.append(f"more memory for {item.option.name}: {item.text}")
    return tuple(changes)
