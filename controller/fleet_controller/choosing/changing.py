"""What would change a decision: measurements, scores, other contexts, more memory."""

from collections.abc import Iterator, Sequence

from fleet_controller.choosing import reasons
from fleet_controller.choosing.bars import Relation, by_bars, is_wide
from fleet_controller.choosing.comparing import ahead_by
from fleet_controller.choosing.options import Certainty, Goal, Option, Standing
from fleet_controller.choosing.ranking import Tie, standing_of
from fleet_controller.domain.plan import FitVerdict


def rivals(ordered: Sequence[Option], goal: Goal, tie: Tie) -> list[Option]:
    """Options of which a measurement could put another one first; none where no bar reaches the first's."""
    if not ordered:
        return []
    first = ordered[0]
    reaching = [option for option in ordered[1:] if _may_win(option, first, goal, tie)]
    unclear = [option for option in reaching if _is_unclear(option, first, goal, tie)]
    noisy = (first, *unclear) if unclear else ()
    return [one for one in (first, *reaching) if reaching and _is_unsure(standing_of(one, goal), one in noisy)]


def _is_unclear(option: Option, first: Option, goal: Goal, tie: Tie) -> bool:
    known = standing_of(option, goal).is_known and standing_of(first, goal).is_known
    return known and tie(first, option) is Relation.UNCLEAR


def _is_unsure(standing: Standing, is_noisy: bool) -> bool:
    """What was measured is measured again where nobody can tell it from another, and its own bar is why."""
    if standing.certainty in (Certainty.MEASURED, Certainty.CHIP):
        return is_noisy and is_wide(standing)
    return True


def _may_win(option: Option, first: Option, goal: Goal, tie: Tie) -> bool:
    """Whether its bar reaches the first's; two predictions are told apart as `tie` does, which knows more than bars."""
    if option.fit is not first.fit or option.offload_bytes != first.offload_bytes:
        return False
    if option.held_back or option.on_request:
        return False
    one, other = standing_of(option, goal), standing_of(first, goal)
    if not (one.is_known and other.is_known):
        return True
    if one.certainty is other.certainty is Certainty.PREDICTED:
        return one.value > other.value or tie(first, option) is Relation.TIE
    return one.high > other.low


def would_change(
    ordered: Sequence[Option], measurable: Sequence[Option], refused: Sequence[Option], goal: Goal
) -> Iterator[str]:
    """Measurements and changes that could put another option first. `refused` are those that do not fit."""
    if not ordered:
        yield from _shorter_contexts(refused)
        return
    first = ordered[0]
    yield from (reasons.measuring(option, standing_of(option, goal)) for option in measurable)
    for option in ordered:
        yield from _option_changes(option, first, goal)
    yield from _shorter_contexts([*ordered, *refused])
    for option in refused:
        if standing_of(option, goal).value > standing_of(first, goal).value:
            yield f"more memory for {option.name}: {option.fit_text}"


def _option_changes(option: Option, first: Option, goal: Goal) -> Iterator[str]:
    one, other = standing_of(option, goal), standing_of(first, goal)
    faster = option.fit is first.fit and one.value > other.value > 0
    if option.on_request:
        if faster and not option.held_back and by_bars(option, first, goal) is Relation.APART:
            more = ahead_by(option, first, goal)
            yield f"--backend {option.backend}: {option.name} is {more} ahead, {one.certainty.value}"
        return
    if faster and option.held_back and not first.held_back:
        yield f"a score of {option.name}: `fleet eval` measures it"


def _shorter_contexts(ordered: Sequence[Option]) -> Iterator[str]:
    """As "--context 65536: llama.cpp Q4_K_M, llama.cpp Q8_0 would fit entirely", the longest first."""
    names: dict[int, list[str]] = {}
    for option in ordered:
        shorter = 0 < option.fully_fitting_context < option.context_tokens
        if option.fit is not FitVerdict.FITS and shorter and not option.on_request:
            names.setdefault(option.fully_fitting_context, []).append(option.name)
    for context in sorted(names, reverse=True):
        yield f"--context {context}: {', '.join(names[context])} would fit entirely"
