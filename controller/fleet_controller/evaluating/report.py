"""What a score says beside others of its scale: told apart or not, and how many questions it would take. Pure."""

from collections.abc import Iterable
from typing import Any

from fleet_controller.evaluating.scores import paired_difference, questions_to_show
from fleet_controller.results.quality import MMLU_PRO, QualityRow

# A difference that a choice of quantization turns on.
DIFFERENCE_OF_INTEREST = 0.02


def comparisons(row: QualityRow, others: Iterable[QualityRow]) -> list[dict[str, Any]]:
    """This score against each other artifact of the same model on the same scale, over the questions both answered."""
    found: dict[str, dict[str, Any]] = {}
    for other in others:
        same_model = other.model == row.model or (row.repository and other.repository == row.repository)
        if row.metric != MMLU_PRO or other.scale != row.scale or not same_model:
            continue
        if other.artifact_hash == row.artifact_hash:
            continue
        difference = paired_difference(right_answers(other), right_answers(row))
        if difference is not None:
            told = {**difference.model_dump(), "shown": difference.shown, "against": other.quantization}
            found[other.artifact_hash] = {**told, "text": _text(row, other, told)}
    return list(found.values())


def right_answers(row: QualityRow) -> dict[str, bool]:
    """Whether each question was answered right."""
    return {name: bool(said["right"]) for name, said in row.raw.get("answers", {}).items()}


def _text(row: QualityRow, other: QualityRow, told: dict[str, Any]) -> str:
    points = f"{100 * told['difference']:+.1f} points ({100 * told['low']:+.1f} to {100 * told['high']:+.1f})"
    text = (
        f"{row.quantization or row.model} against {other.quantization or other.model}, {told['n']} questions: {points}"
    )
    if told["shown"]:
        return f"{text}: told apart"
    more = told["questions"] - told["n"]
    if not told["questions"]:
        return f"{text}: not told apart, no difference seen"
    wanted = f"about {more} more questions would" if more > 0 else "a few more questions may"
    return f"{text}: not told apart; {wanted} show a difference of this size"


def planning_note(questions: int, share: float = 0.6) -> str:
    """What so many questions can tell, before they are asked."""
    needed = questions_to_show(DIFFERENCE_OF_INTEREST, share)
    width = 1.96 * (share * (1 - share) / questions) ** 0.5
    return (
        f"{questions} questions give about ±{100 * width:.1f} points; two models that differ by "
        f"{100 * DIFFERENCE_OF_INTEREST:.0f} points are told apart by about {needed:,} questions each, fewer where "
        "both answer mostly alike (all quantizations are asked the same questions)"
    )
