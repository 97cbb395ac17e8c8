"""Which of several models is faster on a machine, each as it was chosen there."""

from collections.abc import Mapping

from fleet_controller.choosing.bars import Relation, weaker_level
from fleet_controller.choosing.decision import Decision, Ranked
from fleet_controller.choosing.known import SpeedSource
from fleet_controller.choosing.options import Goal, amount, digits_of
from fleet_controller.choosing.ties import Cells, relation
from fleet_controller.domain.plan import FitVerdict


def compare_models(
    decisions: Mapping[str, Decision], goal: Goal, cells: Mapping[str, Cells], speed: SpeedSource
) -> list[str]:
    """One sentence for each model behind the fastest; none where fewer than two are known.

    `cells` are those of the chosen options, by model, where they can be predicted.
    """
    known = [
        (model, decision.chosen)
        for model, decision in sorted(decisions.items())
        if decision.chosen is not None and decision.chosen.standing.is_known
    ]
    if len(known) < 2:
        return []
    known.sort(key=lambda item: (item[1].option.fit is not FitVerdict.FITS, -item[1].standing.value, item[0]))
    fastest, first = known[0]
    return [
        _against(
            fastest,
            first,
            model,
            ranked,
            goal,
            relation(first.option, ranked.option, goal, cells.get(fastest), cells.get(model), speed),
        )
        for model, ranked in known[1:]
    ]


def _against(fastest: str, first: Ranked, model: str, other: Ranked, goal: Goal, stand: Relation) -> str:
    level = weaker_level(first.standing, other.standing)
    certainties = " and ".join(dict.fromkeys((first.standing.certainty.value, other.standing.certainty.value)))
    values = [amount(one.standing.value, digits_of(one.standing.certainty)) for one in (first, other)]
    figures = f"{' and '.join(values)} {first.standing.unit}, {certainties}"
    figures += f"; {level}" if level else ""
    names = f"{fastest} ({first.option.name})", f"{model} ({other.option.name})"
    part = ", which lies partly on the CPU" if other.option.fit is FitVerdict.FITS_WITH_OFFLOAD else ""
    if stand is Relation.TIE:
        return f"{names[0]} and {names[1]}{part} are a tie for {goal.value} ({figures})"
    times = first.standing.value / other.standing.value
    figures += f"; {stand.value}: measure again" if stand is Relation.UNCLEAR else ""
    if times < 1:
        return f"{names[0]} before {names[1]}{part} for {goal.value} ({figures})"
    return f"{names[0]} is {times:.2f} times as fast for {goal.value} as {names[1]}{part} ({figures})"
