"""Which cell is taken where its model was never measured, and what that loses: regret, for benchmarks.speed_prediction.

On each device with at least two measured candidates (engine and quantization) for one model, through the same
kind of client and at near depth, `decide` takes one as `fleet choose` does, from predictions made without any row of
that model: what cannot be told apart is a tie, and goes to the better file (more bits a weight). Regret is what the
taken one loses against the one measured fastest; measured speeds within `TIE` of each other count as one.

A machine has one Vulkan driver, which fleet does not choose. Rows that were measured with two are two machines, whose
other engines are the same; rows are never averaged over drivers.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fleet_controller.choosing.decision import decide
from fleet_controller.choosing.options import Goal, Option, predicted_figure
from fleet_controller.choosing.speed import SpeedModel
from fleet_controller.choosing.ties import Cells, ties_of
from fleet_controller.choosing.work import Cell, MeasuredSpeed, Phase
from fleet_controller.domain.plan import FitVerdict
from fleet_controller.planning.usable import ON_REQUEST, PREFERENCE
from fleet_controller.results.comparability import near_depth

# Measured speeds within 2 % are a tie: llama-bench's own deviation is 0.1 to 2 % on GPUs that nothing else uses.
TIE = 0.02
_GOALS = {Phase.DECODE: Goal.DECODE, Phase.PREFILL: Goal.PREFILL}
_BITS = 8
# fleet's own order of backends, which decides where nothing else does.
_ORDER = list(dict.fromkeys(backend for backend, _ in (*PREFERENCE, *ON_REQUEST)))


@dataclass(frozen=True)
class Choice:
    """One decision: what was taken and why, what was measured fastest, and the share of speed that is lost by it."""

    device: str
    model: str
    depth: int
    chosen: str
    best: str
    candidates: int
    regret: float
    reasons: tuple[str, ...] = ()


def choices(rows: Sequence[MeasuredSpeed], models: Mapping[str, SpeedModel], phase: Phase) -> list[Choice]:
    """One for each group of comparable rows that has two candidates; `models`: by the name of what was withheld."""
    return [
        choice
        for group in comparable(row for row in rows if row.cell.phase is phase)
        for machine in by_driver(group)
        if (choice := choose(machine, models[group[0].cell.model.name])) is not None
    ]


def by_driver(group: Sequence[MeasuredSpeed]) -> list[list[MeasuredSpeed]]:
    """The rows that one machine could have: those of one driver, and those that need none."""
    drivers = sorted({row.cell.engine.driver for row in group} - {""}) or [""]
    return [[row for row in group if row.cell.engine.driver in ("", driver)] for driver in drivers]


def comparable(rows: Iterable[MeasuredSpeed]) -> list[list[MeasuredSpeed]]:
    """Rows of one model on one device through one kind of client at near depths."""
    groups: list[list[MeasuredSpeed]] = []
    for row in sorted(rows, key=lambda row: (row.cell.device.name, row.cell.model.name, row.cell.depth)):
        fitting = (group for group in groups if _same_question(group[0].cell, row.cell))
        group = next(fitting, None)
        if group is None:
            groups.append([row])
        else:
            group.append(row)
    return groups


def choose(group: Sequence[MeasuredSpeed], model: SpeedModel) -> Choice | None:
    """What `decide` takes of these; None where there is nothing to choose between."""
    measured: dict[str, list[float]] = defaultdict(list)
    options, cells = dict[str, Option](), dict[str, Cells]()
    goal = _GOALS[group[0].cell.phase]
    for row in group:
        option = _option(row.cell, model)
        options[option.name], cells[option.name] = option, {row.cell.phase: row.cell}
        measured[option.name].append(row.tokens_per_second)
    if len(options) < 2:
        return None
    taken = decide(options.values(), goal, tie=ties_of(lambda: model, cells, goal)).ranked[0]
    speeds = {name: statistics.fmean(values) for name, values in measured.items()}
    best = max(sorted(speeds), key=speeds.__getitem__)
    lost = 1 - speeds[taken.option.name] / speeds[best]
    cell = group[0].cell
    return Choice(
        device=cell.device.name,
        model=cell.model.name,
        depth=cell.depth,
        chosen=taken.option.name,
        best=best,
        candidates=len(speeds),
        regret=0.0 if lost <= TIE else lost,
        reasons=taken.reasons,
    )


def _same_question(first: Cell, second: Cell) -> bool:
    same = (first.device, first.model, first.engine.over_http) == (second.device, second.model, second.engine.over_http)
    return same and near_depth(first.depth, second.depth)


def _option(cell: Cell, model: SpeedModel) -> Option:
    figure = predicted_figure(model.predict(cell))
    engine = cell.engine
    return Option(
        backend=engine.backend,
        quantization=cell.quantization,
        runtime=" ".join(part for part in (engine.runtime, engine.driver) if part),
        place=_ORDER.index(engine.backend),
        bits_per_weight=_BITS * cell.weights_bytes / cell.model.parameters,
        fit=FitVerdict.FITS,
        decode=figure if cell.phase is Phase.DECODE else None,
        prefill=figure if cell.phase is Phase.PREFILL else None,
    )
