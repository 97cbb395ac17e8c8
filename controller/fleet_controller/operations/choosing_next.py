"""The commands that would make a choice surer, each with what it is for."""

from collections.abc import Iterator

from fleet_controller.benchmarking.suites import ENERGY_SUITE
from fleet_controller.choosing.decision import Decision, WhyNot
from fleet_controller.choosing.options import NEVER_PREDICTED, Certainty, Goal, Standing

# How many times the low end of a prediction its high end must be for a calibration to be worth its minute.
DOUBTFUL = 2.0


def next_commands(
    model: str, host: str, decision: Decision, asked_context: int | None = None, measurable: bool = True
) -> Iterator[str]:
    """As "fleet bench qwen3.5-4b --hosts gpu1 --to-decide"; none where nothing is open.

    `asked_context`: the context that the question was about, None where none was named. `measurable`: whether the goal
    can be measured there.
    """
    chosen = decision.chosen
    where = f"{model} --hosts {host}"
    if decision.to_measure or _is_unmeasured(decision):
        if measurable:
            yield f"fleet bench {where} {_measures(decision)}"
    elif chosen is not None and _is_doubtful(chosen.standing):
        yield f"fleet calibrate --hosts {host}"
    held = any(ranked.option.held_back for ranked in decision.ranked)
    unscored = any(item.why is WhyNot.QUALITY and item.option.quality is None for item in decision.ruled_out)
    if held or unscored:
        yield f"fleet eval {where}"
    if chosen is not None:
        option = chosen.option
        shorter = option.context_tokens if option.context_tokens != option.longest_context else asked_context
        context = f" --context {shorter}" if shorter else ""
        # A path has one quantization, and its name may tell another.
        quantization = "" if model.startswith(("/", "./")) else f" --quant {option.quantization}"
        yield f"fleet deploy {where} --backend {option.backend}{quantization}{context}"


def _is_unmeasured(decision: Decision) -> bool:
    """Nobody measured the first, and nothing but that tells how it does."""
    chosen = decision.chosen
    return decision.goal in NEVER_PREDICTED and chosen is not None and not chosen.standing.is_known


def _measures(decision: Decision) -> str:
    """What several users get is no question of one request, and one option alone is no question: both have suites."""
    if decision.goal is Goal.THROUGHPUT:
        return "--suite concurrency"
    if not decision.to_measure:
        return f"--suite {ENERGY_SUITE}"
    return "--to-decide" if decision.goal is Goal.DECODE else f"--to-decide --goal {decision.goal.value}"


def _is_doubtful(standing: Standing) -> bool:
    if standing.certainty is Certainty.PREDICTED:
        return standing.high > DOUBTFUL * standing.low
    return standing.certainty is Certainty.UNKNOWN
