"""A decision in words, line by line: what was chosen and why, what else there is, and what would change it."""

from collections import Counter

from fleet_controller.choosing.decision import Decision, Ranked, WhyNot
from fleet_controller.choosing.options import Certainty, amount, digits_of
from fleet_controller.domain.sizes import gibibytes


def explain(decision: Decision) -> list[str]:
    """Plain lines for a terminal or a file; two spaces are one level."""
    if decision.chosen is None:
        lines = [f"nothing can be chosen for {decision.goal.value}"]
    else:
        lines = [f"{decision.chosen.option.name} for {decision.goal.value}"]
    for ranked in decision.ranked:
        if not ranked.option.on_request:
            lines += _ranked(ranked)
    asked_for = [ranked for ranked in decision.ranked if ranked.option.on_request]
    if asked_for:
        lines.append("on request only:")
        lines += _on_request(asked_for)
    if decision.ruled_out:
        lines.append("ruled out:")
        lines += [f"  {item.option.name}: {item.text}" for item in decision.ruled_out]
    if len(decision.pareto) > 1:
        lines.append(f"between speed and {decision.pareto_by}: {', '.join(decision.pareto)}")
    if decision.would_change:
        lines.append("what would change it:")
        lines += [f"  {text}" for text in decision.would_change]
    return lines


def _ranked(ranked: Ranked) -> list[str]:
    context = f", context {ranked.option.context_tokens:,}" if ranked.option.context_tokens else ""
    tie = ", a tie with the first" if ranked.ties_with_first else ""
    return [f"{ranked.place}. {ranked.option.name}{context}{tie}", *(f"  {reason}" for reason in ranked.reasons)]


def _on_request(asked_for: list[Ranked]) -> list[str]:
    """Shorter: of each backend why, and the first of its options in one line."""
    lines: list[str] = []
    for backend in dict.fromkeys(ranked.option.backend for ranked in asked_for):
        mine = [ranked for ranked in asked_for if ranked.option.backend == backend]
        lines.append(f"  {backend}: {mine[0].option.on_request}")
        option = mine[0].option
        texts = [f"context {option.context_tokens:,}", *mine[0].reasons[:2], mine[0].comparison, option.held_back]
        lines.append(f"    {option.name}: {'; '.join(text for text in texts if text)}")
        if len(mine) > 1:
            lines.append(f"    behind it: {', '.join(ranked.option.quantization for ranked in mine[1:])}")
    return lines


def summary(decision: Decision) -> str:
    """One line: "llama.cpp Q4_K_M: decode 137 t/s, measured on this chip; 12 % ahead of llama.cpp Q8_0"."""
    chosen = decision.chosen
    if chosen is None:
        return _nothing(decision)
    standing = chosen.standing
    digits = digits_of(standing.certainty)
    known = f"{decision.goal.value} {amount(standing.value, digits)} {standing.unit}, {standing.certainty.value}"
    if chosen.option.offload_bytes:
        known += f" with all of it on the GPU, {gibibytes(chosen.option.offload_bytes)} are on the CPU"
    elif standing.certainty is Certainty.PREDICTED:
        known += f" {amount(standing.low, digits)} to {amount(standing.high, digits)}"
    if not standing.is_known:
        known = standing.text
    return "; ".join(part for part in (f"{chosen.option.name}: {known}", chosen.comparison) if part)


def _nothing(decision: Decision) -> str:
    """What stands in the way of most, the first of them in full."""
    text = f"nothing can be chosen for {decision.goal.value}"
    if not decision.ruled_out:
        return text
    reasons = Counter(item.why for item in decision.ruled_out)
    most = max(WhyNot, key=lambda why: reasons[why])
    first = next(item for item in decision.ruled_out if item.why is most)
    return f"{text}: {first.option.name} {first.text}" + (
        f", and {len(decision.ruled_out) - 1} more" if len(decision.ruled_out) > 1 else ""
    )
