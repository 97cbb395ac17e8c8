"""The commands that would make a choice surer, each with what it is for."""

from collections.abc import Iterator

from fleet_controller.choosing.decision import Decision, WhyNot
from fleet_controller.choosing.options import Certainty

_UNSURE = (Certainty.PREDICTED, Certainty.UNKNOWN)


def next_commands(model: str, host: str, decision: Decision) -> Iterator[str]:
    """As "fleet bench qwen3.5-4b --hosts gpu1 --to-decide"; none where nothing is open."""
    chosen = decision.chosen
    if len(decision.to_measure) > 1:
        yield f"fleet bench {model} --hosts {host} --to-decide"
    elif chosen is not None and chosen.standing.certainty in _UNSURE:
        yield f"fleet calibrate --hosts {host}"
    held = any(ranked.option.held_back for ranked in decision.ranked)
    unscored = any(item.why is WhyNot.QUALITY and item.option.quality is None for item in decision.ruled_out)
    if held or unscored:
        yield f"fleet eval {model} --hosts {host}"
    if chosen is not None:
        option = chosen.option
        context = f" --context {option.context_tokens}" if option.context_tokens != option.longest_context else ""
        yield f"fleet deploy {model} --hosts {host} --backend {option.backend} --quant {option.quantization}{context}"
