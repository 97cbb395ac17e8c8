"""A decision in words, line by line: what was chosen and why, what else there is, and what would change it."""

from fleet_controller.choosing.decision import Decision, Ranked


def explain(decision: Decision) -> list[str]:
    """Plain lines for a terminal or a file; two spaces are one level."""
    if decision.chosen is None:
        lines = [f"nothing can be chosen for {decision.goal.value}"]
    else:
        lines = [f"{decision.chosen.option.name} for {decision.goal.value}"]
    for ranked in decision.ranked:
        lines += _ranked(ranked)
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
    context = f", context {ranked.option.context_tokens}" if ranked.option.context_tokens else ""
    tie = ", a tie with the first" if ranked.ties_with_first else ""
    return [f"{ranked.place}. {ranked.option.name}{context}{tie}", *(f"  {reason}" for reason in ranked.reasons)]
