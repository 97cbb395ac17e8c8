"""Which option wins on one machine, and why: fit, then a floor on quality, then speed. Pure and deterministic.

Figures whose bars overlap are a tie where little lies between them, and else too noisy to tell. What is taken on
request only, what lies partly on the CPU, what is held back and what nobody knows a figure of go behind (ranking.py).
"""

from collections.abc import Iterable
from enum import StrEnum

from fleet_controller.choosing import reasons
from fleet_controller.choosing.bars import by_bars
from fleet_controller.choosing.changing import rivals, would_change
from fleet_controller.choosing.comparing import comparison
from fleet_controller.choosing.options import Goal, Option, Standing
from fleet_controller.choosing.pareto import pareto_set
from fleet_controller.choosing.ranking import Order, Tie, in_order, standing_of
from fleet_controller.domain.base import Frozen
from fleet_controller.domain.plan import FitVerdict


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
    """Rank what fits and is good enough. `tie` says how two options stand for the goal (default: by their bars).

    Raises ValueError where two options have one name.
    """
    candidates = sorted(options, key=lambda option: option.name)
    names = [option.name for option in candidates]
    if len(set(names)) < len(names):
        raise ValueError(f"two options are called {next(name for name in names if names.count(name) > 1)}")
    ruled_out = [found for option in candidates if (found := _rule_out(option, quality_floor)) is not None]
    gone = {item.option.name for item in ruled_out}
    left = [option for option in candidates if option.name not in gone]
    tie = tie or (lambda one, other: by_bars(one, other, goal))
    order = in_order(left, goal, tie)
    measurable = rivals(order.options, goal, tie)
    pareto, by = pareto_set(order.options, goal)
    refused = [item.option for item in ruled_out if item.why is WhyNot.MEMORY]
    return Decision(
        goal=goal,
        ranked=tuple(_ranked(place, option, order, goal) for place, option in enumerate(order.options, start=1)),
        ruled_out=tuple(ruled_out),
        pareto=pareto,
        pareto_by=by,
        would_change=tuple(would_change(order.options, measurable, refused, goal)),
        to_measure=tuple(option.name for option in measurable),
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


def _ranked(place: int, option: Option, order: Order, goal: Goal) -> Ranked:
    standing = standing_of(option, goal)
    compared = comparison(place, option, order, goal)
    scored = reasons.score(option.quality) if option.quality else ""
    found = (
        reasons.fit(option),
        reasons.figure(option, standing),
        compared,
        scored,
        option.held_back,
        option.on_request,
        *option.notes,
    )
    return Ranked(
        place=place,
        option=option,
        standing=standing,
        ties_with_first=option.name in order.tied and place > 1,
        reasons=tuple(reason for reason in found if reason),
        comparison=compared,
    )
