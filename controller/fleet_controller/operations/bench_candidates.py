"""A host's planned cells as candidates of a decision: their intervals, what a run of each costs, and which can win."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fleet_controller.benchmarking.cells import PlannedCell
from fleet_controller.benchmarking.estimate import INSTALL_SECONDS
from fleet_controller.choosing.decision import Decision, decide
from fleet_controller.choosing.elimination import Candidate, Eliminated, Run, Stop, could_win, eliminated, next_run
from fleet_controller.choosing.options import Certainty, Goal, Option
from fleet_controller.choosing.ties import Cells, faster_by, is_predicted, ties_of
from fleet_controller.domain.benches import BenchRequest, CellAction
from fleet_controller.operations.bench_cell import builds
from fleet_controller.operations.bench_figures import known_of, speed_cells
from fleet_controller.operations.choosing_knowledge import Knowledge
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.problems import OperationError
from fleet_controller.results.pooling import MOST_RUNS
from fleet_inventory.catalog import load_catalog

# One request's decode, its prefill, both, or the energy: what a bench of one cell tells.
GOALS = (Goal.DECODE, Goal.PREFILL, Goal.LATENCY, Goal.ENERGY)


@dataclass(frozen=True)
class Contest:
    """The cells of one host by their names, as options and as candidates, at one moment.

    `held` are no candidates: why others go before them however fast they are.
    """

    goal: Goal
    cells: Mapping[str, PlannedCell]
    options: Mapping[str, Option]
    candidates: Mapping[str, Candidate]
    faster: frozenset[tuple[str, str]]
    decision: Decision
    held: Mapping[str, str]

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


def contest(
    context: FleetContext, cells: Iterable[PlannedCell], request: BenchRequest, broken: Collection[str] = ()
) -> Contest:
    """Where the decision stands. `broken` are names of cells that could not be measured: they cost no more runs."""
    goal = goal_of(request)
    knowledge = knowledge_of(context)
    named = by_name(cells)
    found = {name: known_of(cell, knowledge, context.database) for name, cell in named.items()}
    options = {
        name: known.option.model_copy(update={"repository": _repository(name, known.option)})
        for name, known in found.items()
    }
    held = {name: option.held_back for name, option in options.items() if option.held_back}
    if request.quantization or len(held) == len(
        options
    ):  # who names them wants to know, and of equals none goes behind
        held = {}
        options = {name: option.model_copy(update={"held_back": ""}) for name, option in options.items()}
    candidates = {
        name: candidate_of(name, options[name], goal, known.runs, None if name in broken else known.run_seconds)
        for name, known in found.items()
        if name not in held
    }
    predicted: dict[str, Cells] = {
        name: made_of
        for name, planned in named.items()
        if options[name].name == name and (made_of := dict(speed_cells(planned, knowledge)))
    }
    tie = ties_of(knowledge.speed, predicted, goal)
    faster = frozenset(_pairs(options, predicted, goal, knowledge))
    return Contest(goal, named, options, candidates, faster, decide(options.values(), goal, None, tie), held)


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
    # What another suite measured here counts as a run.
    runs = max(runs, int(standing.certainty is Certainty.MEASURED))
    return Candidate(
        name=name, value=standing.value, low=standing.low, high=standing.high, runs=runs, cost_seconds=cost
    )


def saved_seconds(needless: Sequence[PlannedCell], ran: Sequence[PlannedCell]) -> float:
    """What runs would have taken that were not made, by the plan's estimates; an engine is installed once."""
    installed = {cell.identity.install_key for cell in ran if cell.identity is not None}
    total = 0.0
    for cell in needless:
        assert cell.identity is not None
        total += cell.run_seconds
        if builds(cell.steps):
            total -= INSTALL_SECONDS if cell.identity.install_key in installed else 0.0
            installed.add(cell.identity.install_key)
    return total


def _pairs(
    options: Mapping[str, Option], cells: Mapping[str, Cells], goal: Goal, knowledge: Knowledge
) -> Iterable[tuple[str, str]]:
    """Of two predictions for one machine the ratio is surer than either."""
    guessed = [name for name in cells if is_predicted(options[name], goal)]
    for one in guessed:
        for other in guessed:
            if one == other:
                continue
            ratio = faster_by(knowledge.speed(), cells[one], cells[other], goal)
            if ratio is not None and ratio[0] > 1:
                yield one, other


def with_reasons(context: FleetContext, request: BenchRequest, cells: Sequence[PlannedCell]) -> list[PlannedCell]:
    """The plan of a decision: which cells may run and why each could win, and which never will."""
    shown: dict[str, PlannedCell] = {}
    for host in dict.fromkeys(cell.shown.host for cell in cells):
        standing = contest(context, [cell for cell in cells if cell.shown.host == host], request)
        step = next_run(standing.candidates.values(), standing.faster)
        for name, cell in standing.cells.items():
            action, reason = _needless(name, standing, step) or _may_run(name, standing)
            shown[cell.shown.cell_id] = _as_planned(cell, standing.candidates.get(name), action, reason)
    return [shown.get(cell.shown.cell_id, cell) if cell.identity is not None else cell for cell in cells]


def _needless(name: str, standing: Contest, step: Run | Stop) -> tuple[CellAction, str] | None:
    """Why a cell will not run whatever is measured; None where it may."""
    if name in standing.held:
        return CellAction.SKIP, f"held back: {standing.held[name]}; --quant measures it all the same"
    candidate = standing.candidates[name]
    better = next((standing.candidates[item.by] for item in standing.out if item.name == name), None)
    if better is not None:
        reason = f"cannot win: {candidate.high:.4g} at most, and {better.name} has {better.low:.4g} at least"
        if better.low <= candidate.high:
            reason = (
                f"cannot win: predicted to be slower than {better.name}, by more than predictions of one machine err"
            )
        return CellAction.SKIP, reason
    if isinstance(step, Stop):
        return CellAction.SKIP, f"decided: {step.text}"
    if candidate.cost_seconds is None:
        return CellAction.SKIP, f"measured {candidate.runs} times: {candidate.low:.4g} to {candidate.high:.4g}"
    return None


def _may_run(name: str, standing: Contest) -> tuple[CellAction, str]:
    candidate = standing.candidates[name]
    if candidate.runs:
        return CellAction.RUN, f"may run once more: {candidate.low:.4g} to {candidate.high:.4g} overlaps with others"
    out = {item.name for item in standing.out}
    left = [one for one in standing.candidates.values() if one.name not in out]
    return CellAction.RUN, f"may run: {could_win(candidate, left)}"


def _as_planned(cell: PlannedCell, candidate: Candidate | None, action: CellAction, reason: str) -> PlannedCell:
    runs = action is CellAction.RUN and candidate is not None
    update: dict[str, object] = {
        "action": action,
        "reason": reason,
        "runs": int(runs),
        "estimated_seconds": candidate.cost_seconds if runs and candidate is not None else 0.0,
    }
    if not runs:
        update |= {"download_bytes": 0, "disk_bytes": 0}
    return cell.model_copy(update={"shown": cell.shown.model_copy(update=update)})
