"""A decision in words, line by line: what was chosen and why, what else there is, and what would change it."""

from collections import Counter

from fleet_controller.choosing.decision import Decision, Ranked, WhyNot
from fleet_controller.choosing.options import Certainty, amount, digits_of
from fleet_controller.choosing.pareto import BITS
from fleet_controller.choosing.reasons import percent, score
from fleet_controller.domain.sizes import gibibytes

# Fewer bits a weight more than that are no other answers.
WORTH_SAYING_BITS = 1.0
# Whether nobody scored the answers -> why the fastest is taken.
_WHY_SPEED = {
    True: "speed decides, since nobody scored their answers (`fleet eval` does, and --quality-floor holds to it)",
    False: "speed decides without --quality-floor",
}


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
        if instead := better_answers(decision):
            lines.append(f"  {_WHY_SPEED[decision.pareto_by == BITS]}; {instead}")
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
    parts = (f"{chosen.option.name}: {known}", chosen.comparison, better_answers(decision))
    return "; ".join(part for part in parts if part)


def better_answers(decision: Decision) -> str:
    """As "--quant Q8_0 has 8.5 bits a weight instead of 4.9, 33 % slower"; "" where nothing is given up for speed."""
    chosen = decision.chosen
    if chosen is None or chosen.option.name not in decision.pareto[:-1] or chosen.option.offload_bytes:
        return ""
    other = next(ranked for ranked in decision.ranked if ranked.option.name == decision.pareto[-1])
    option, mine = other.option, chosen.option
    if decision.pareto_by == BITS and option.bits_per_weight < mine.bits_per_weight + WORTH_SAYING_BITS:
        return ""
    wish = f"--backend {option.backend} " if option.backend != mine.backend else ""
    wish += f"--quant {option.quantization}"
    slower = percent(1 - other.standing.value / chosen.standing.value)
    if decision.pareto_by == BITS:
        bits, own = (f"{one.bits_per_weight:.1f}" for one in (option, mine))
        return f"{wish} has {bits} bits a weight instead of {own}, {slower} slower"
    assert option.quality is not None and mine.quality is not None
    return f"{wish} has {score(option.quality)} instead of {mine.quality.score:.3g}, {slower} slower"


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
