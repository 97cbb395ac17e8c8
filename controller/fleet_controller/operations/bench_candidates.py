"""A host's planned cells as candidates of a decision: their intervals, what a run of each costs, and which can win."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fleet_controller.benchmarking.cells import PlannedCell
from fleet_controller.choosing.decision import Decision, decide
from fleet_controller.choosing.elimination import Candidate, Eliminated, could_win, eliminated
from fleet_controller.choosing.options import Certainty, Goal, Option
from fleet_controller.choosing.ties import ties_of
from fleet_controller.choosing.work import Cell, Phase
from fleet_controller.domain.benches import BenchRequest, CellAction
from fleet_controller.operations.bench_figures import option_of, speed_cells
from fleet_controller.operations.choosing_knowledge import Knowledge
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.problems import OperationError
from fleet_inventory.catalog import load_catalog

MOST_RUNS = 3
# One request's decode, its prefill, both, or the energy: what a bench of one cell tells.
GOALS = (Goal.DECODE, Goal.PREFILL, Goal.LATENCY, Goal.ENERGY)
_PHASE_OF_GOAL = {Goal.DECODE: Phase.DECODE, Goal.PREFILL: Phase.PREFILL}


@dataclass(frozen=True)
class Contest:
    """The cells of one host by their names, as options and as candidates, at one moment."""

    goal: Goal
    cells: Mapping[str, PlannedCell]
    options: Mapping[str, Option]
    candidates: Mapping[str, Candidate]
    faster: frozenset[tuple[str, str]]
    decision: Decision

    @property
    def out(self) -> tuple[Eliminated, ...]:
        return eliminated(self.candidates.values(), self.faster)


def goal_of(request: BenchRequest) -> Goal:
    """Raises OperationError for a goal that no bench of one cell tells."""
    names = [goal.value for goal in GOALS]
    if (request.goal or Goal.DECODE.value) not in names:
        message = f"--to-decide goes by {', '.join(names)}, not by {request.goal}"
        remedy = "fleet bench MODEL --suite concurrency measures what several users get"
        raise OperationError("usage", message, remedy, usage=True)
    return Goal(request.goal or Goal.DECODE.value)


def knowledge_of(context: FleetContext) -> Knowledge:
    """As it is now: results may have been added since the last look."""
    return Knowledge(context.database, load_catalog((context.settings.hosts_file.parent / "models",)))


def contest(context: FleetContext, cells: Iterable[PlannedCell], goal: Goal, broken: Collection[str] = ()) -> Contest:
    """Where the decision stands. `broken` are names of cells that could not be measured: they cost no more runs."""
    knowledge = knowledge_of(context)
    named = by_name(cells)
    found = {name: option_of(cell, knowledge, context.database) for name, cell in named.items()}
    options = {
        name: option.model_copy(update={"repository": _repository(name, option)}) for name, (option, _) in found.items()
    }
    candidates = {
        name: candidate_of(
            name, options[name], goal, found[name][1], None if name in broken else named[name].run_seconds
        )
        for name in named
    }
    phase = _PHASE_OF_GOAL.get(goal)
    predicted = {
        name: cell
        for name, planned in named.items()
        for kind, cell in speed_cells(planned, knowledge)
        if kind is phase and options[name].name == name
    }
    tie = ties_of(knowledge.speed, predicted, goal)
    faster = frozenset(_pairs(options, predicted, goal, knowledge))
    return Contest(goal, named, options, candidates, faster, decide(options.values(), goal, None, tie))


def _repository(name: str, option: Option) -> str:
    return option.repository if option.name == name else name.partition(" (")[2].partition(")")[0]


def by_name(cells: Iterable[PlannedCell]) -> dict[str, PlannedCell]:
    """Cells that can be run, by "llama.cpp Q4_K_M"; a repository is named where two would be called the same."""
    able = [cell for cell in cells if cell.identity is not None and cell.steps]
    names = [f"{cell.shown.backend} {cell.shown.quantization}" for cell in able]
    found: dict[str, PlannedCell] = {}
    for name, cell in zip(names, able, strict=True):
        assert cell.identity is not None
        more = f" ({cell.identity.artifact})" if names.count(name) > 1 else ""
        found.setdefault(f"{cell.shown.backend}{more} {cell.shown.quantization}", cell)
    return found


def candidate_of(name: str, option: Option, goal: Goal, runs: int, run_seconds: float | None) -> Candidate:
    """Unknown is anything from nothing to infinity. After `MOST_RUNS` runs no more are made."""
    cost = run_seconds if runs < MOST_RUNS else None
    standing = option.standing(goal)
    if standing is None or not standing.is_known:
        return Candidate(name=name, value=0.0, low=0.0, high=math.inf, runs=runs, cost_seconds=cost)
    return Candidate(
        name=name, value=standing.value, low=standing.low, high=standing.high, runs=runs, cost_seconds=cost
    )


def _pairs(
    options: Mapping[str, Option], cells: Mapping[str, Cell], goal: Goal, knowledge: Knowledge
) -> Iterable[tuple[str, str]]:
    """Of two predictions for one machine the ratio is surer than either."""
    guessed = [name for name in cells if (s := options[name].standing(goal)) and s.certainty is Certainty.PREDICTED]
    for one in guessed:
        for other in guessed:
            if one != other and knowledge.speed().faster_by(cells[one], cells[other])[0] > 1:
                yield one, other


def with_reasons(context: FleetContext, request: BenchRequest, cells: Sequence[PlannedCell]) -> list[PlannedCell]:
    """The plan of a decision: which cells may run and why each could win, and which never will."""
    goal = goal_of(request)
    shown: dict[str, PlannedCell] = {}
    for host in dict.fromkeys(cell.shown.host for cell in cells):
        mine = [cell for cell in cells if cell.shown.host == host]
        if any(cell.shown.action is CellAction.RUN for cell in mine):
            standing = contest(context, mine, goal)
            shown |= {cell.shown.cell_id: _explained(name, cell, standing) for name, cell in standing.cells.items()}
    return [shown.get(cell.shown.cell_id, cell) if cell.identity is not None else cell for cell in cells]


def _explained(name: str, cell: PlannedCell, standing: Contest) -> PlannedCell:
    by = {item.name: item.by for item in standing.out}
    candidate = standing.candidates[name]
    if name in by:
        better = standing.candidates[by[name]]
        reason = f"cannot win: {candidate.high:.4g} at most, and {better.name} has {better.low:.4g} at least"
        if (better.name, name) in standing.faster and better.low <= candidate.high:
            reason = f"cannot win: {better.name} is faster for sure"
        update = {"action": CellAction.SKIP, "runs": 0, "estimated_seconds": 0.0, "reason": reason, "download_bytes": 0}
        return cell.model_copy(update={"shown": cell.shown.model_copy(update=update)})
    if cell.shown.action is not CellAction.RUN:
        return cell
    left = [one for one in standing.candidates.values() if one.name not in by]
    reason = f"may run: {could_win(candidate, left)}"
    return cell.model_copy(update={"shown": cell.shown.model_copy(update={"reason": reason})})
