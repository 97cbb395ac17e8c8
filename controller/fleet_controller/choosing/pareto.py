"""What nothing beats in both speed and quality."""

from collections.abc import Sequence

from fleet_controller.choosing.options import Goal, Option
from fleet_controller.choosing.ranking import standing_of

# What stands in the place of quality where not all were scored.
BITS = "bits a weight"


def pareto_set(options: Sequence[Option], goal: Goal) -> tuple[tuple[str, ...], str]:
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
    name = next((option.quality.name for option in comparable if measured and option.quality), BITS)
    return tuple(option.name for option in front), name
