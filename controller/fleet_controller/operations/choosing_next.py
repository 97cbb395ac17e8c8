"""The commands that would make a choice surer, each with what it is for."""

from collections.abc import Iterator

from fleet_controller.choosing.decision import Decision, WhyNot
from fleet_controller.choosing.options import Certainty, Goal, Standing

# How many times the low end of a prediction its high end must be for a calibration to be worth its minute.
DOUBTFUL = 2.0


def next_commands(model: str, host: str, decision: Decision, asked_context: int | None = None) -> Iterator[str]:
    """As "fleet bench qwen3.5-4b --hosts gpu1 --to-decide"; none where nothing is open.

    `asked_context`: the context that the question was about, None where none was named.
    """
    chosen = decision.chosen
    where = f"{model} --hosts {host}"
    goal = "" if decision.goal is Goal.DECODE else f" --goal {decision.goal.value}"
    if len(decision.to_measure) > 1:
        # What several users get is no question of one request: it has a suite of its own.
        measures = "--suite concurrency" if decision.goal is Goal.THROUGHPUT else f"--to-decide{goal}"
        yield f"fleet bench {where} {measures}"
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
        yield f"fleet deploy {where} --backend {option.backend} --quant {option.quantization}{context}"


def _is_doubtful(standing: Standing) -> bool:
    if standing.certainty is Certainty.PREDICTED:
        return standing.high > DOUBTFUL * standing.low
    return standing.certainty is Certainty.UNKNOWN
