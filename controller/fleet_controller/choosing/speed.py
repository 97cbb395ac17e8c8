"""Predicting tokens/s of cells that nobody measured, from those that somebody did and from what chips can do.

A prediction carries an 80 % interval and says what it rests on. Pure: rows in, predictions out; the order of the rows
changes nothing.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fleet_controller.choosing.least_squares import Observation, Prior, Solution, Term, fit, log_sum
from fleet_controller.choosing.priors import BELIEFS, ROW_DEVIATION, Parameter, prior_of
from fleet_controller.choosing.terms import NamedTerm, log_seconds, terms_of
from fleet_controller.choosing.work import Cell, MeasuredSpeed, Phase
from fleet_controller.domain.base import Frozen

COVERED = 0.8
_NORMAL_90_PERCENT = 1.2816  # an 80 % interval leaves 10 % on either side
_PHASE_NAMES = {Phase.DECODE: "decode", Phase.PREFILL: "prefill"}


class Basis(Frozen):
    """One thing that a prediction rests on: rows, a fact of the chip, or a belief that holds without rows."""

    kind: str  # "rows", "fact", "prior"
    text: str
    source: str = ""


class Prediction(Frozen):
    """Tokens/s, its 80 % interval, the share of each part of the time, and what it rests on."""

    tokens_per_second: float
    low: float
    high: float
    shares: tuple[tuple[str, float], ...]
    rests_on: tuple[Basis, ...]


@dataclass(frozen=True)
class _Phase:
    """One phase's fit: where each parameter is, and the rows that it was fitted to."""

    phase: Phase
    places: dict[Parameter, int]
    solution: Solution
    rows: tuple[MeasuredSpeed, ...]


class SpeedModel:
    """Fitted once, then asked often. Raises ValueError for rows that are not positive."""

    def __init__(self, rows: Iterable[MeasuredSpeed]) -> None:
        ordered = sorted(rows, key=_order)
        if any(row.tokens_per_second <= 0 for row in ordered):
            raise ValueError("a measured speed is above zero")
        self._phases = {
            phase: _fit_phase(phase, tuple(row for row in ordered if row.cell.phase is phase)) for phase in Phase
        }

    def predict(self, cell: Cell) -> Prediction:
        phase = self._phases[cell.phase]
        terms = terms_of(cell)
        log_time, shares, variance = _evaluate(phase, terms)
        half = _NORMAL_90_PERCENT * math.sqrt(variance + ROW_DEVIATION[_PHASE_NAMES[cell.phase]] ** 2)
        return Prediction(
            tokens_per_second=math.exp(-log_time),
            low=math.exp(-log_time - half),
            high=math.exp(-log_time + half),
            shares=shares,
            rests_on=_basis(phase, cell, terms),
        )

    def factors(self, phase: Phase) -> dict[Parameter, float]:
        """The fitted factors, for showing and for tests."""
        found = self._phases[phase]
        return {name: math.exp(found.solution.values[place]) for name, place in found.places.items()}


def _order(row: MeasuredSpeed) -> tuple[object, ...]:
    cell = row.cell
    engine = (cell.engine.key, cell.engine.version)
    return (
        cell.device.name,
        *engine,
        cell.model.name,
        cell.quantization,
        cell.tokens,
        cell.depth,
        row.tokens_per_second,
    )


def _fit_phase(phase: Phase, rows: tuple[MeasuredSpeed, ...]) -> _Phase:
    places: dict[Parameter, int] = {}
    # Rows of one model on one device say much the same: together they count as the square root of their number.
    alike = Counter(_group(row.cell) for row in rows)
    deviation = ROW_DEVIATION[_PHASE_NAMES[phase]]
    observations = []
    for row in rows:
        terms = tuple(
            Term(log_seconds(term), tuple(places.setdefault(name, len(places)) for name in term.parameters))
            for term in terms_of(row.cell)
        )
        weight = 1 / math.sqrt(alike[_group(row.cell)])
        observations.append(Observation(terms, -math.log(row.tokens_per_second), deviation, weight))
    solution = fit(observations, [prior_of(name) for name in places])
    return _Phase(phase, places, solution, rows)


def _group(cell: Cell) -> tuple[str, str, str]:
    return cell.model.name, cell.device.name, cell.engine.key


def _evaluate(phase: _Phase, terms: Sequence[NamedTerm]) -> tuple[float, tuple[tuple[str, float], ...], float]:
    """The logarithm of the time, the share of each term, and the variance; unseen parameters keep their priors."""
    places, unseen = phase.places, dict[Parameter, int]()
    known = len(places)
    for term in terms:
        for name in term.parameters:
            if name not in places:
                unseen.setdefault(name, known + len(unseen))
    priors: list[Prior] = [prior_of(name) for name in unseen]
    values = [*phase.solution.values, *(prior.mean for prior in priors)]
    indexed = [Term(log_seconds(t), tuple(places.get(n, unseen.get(n, -1)) for n in t.parameters)) for t in terms]
    log_time, gradient = log_sum(indexed, values)
    variance = phase.solution.variance_of({index: share for index, share in gradient.items() if index < known})
    variance += sum((gradient.get(known + i, 0.0) * prior.deviation) ** 2 for i, prior in enumerate(priors))
    shares = tuple(
        (named.what, math.exp(term.logarithm + sum(values[index] for index in term.parameters) - log_time))
        for named, term in zip(terms, indexed, strict=True)
    )
    return log_time, shares, variance


def _basis(phase: _Phase, cell: Cell, terms: Sequence[NamedTerm]) -> tuple[Basis, ...]:
    device = cell.device
    bases = [Basis(kind="rows", text=text, source=source) for text, source in _row_texts(phase.rows, cell)]
    facts = f"{device.name}: {device.bandwidth / 1e9:g} GB/s"
    if device.matrix_operations:
        facts += f", {device.matrix_operations / 1e12:g} TFLOPS"
    bases.append(Basis(kind="fact", text=facts, source=" ".join(device.source)))
    unfitted = {name[0] for term in terms for name in term.parameters if name not in phase.places}
    bases += [
        Basis(kind="prior", text=f"{name}: {BELIEFS[name].typical:g}", source=BELIEFS[name].source)
        for name in sorted(unfitted)
    ]
    return tuple(bases)


def _row_texts(rows: Sequence[MeasuredSpeed], cell: Cell) -> list[tuple[str, str]]:
    """How many rows are near the cell, the nearest kind first."""
    kinds: dict[str, Callable[[Cell], bool]] = {
        "this model on this device and engine": lambda c: _group(c) == _group(cell),
        "other models on this device and engine": lambda c: _group(c)[1:] == _group(cell)[1:],
        "this engine on other devices": lambda c: c.engine.key == cell.engine.key,
        "other engines": lambda c: True,
    }
    found: list[tuple[str, str]] = []
    rest = list(rows)
    for what, fits in kinds.items():
        near = [row for row in rest if fits(row.cell)]
        rest = [row for row in rest if not fits(row.cell)]
        if near:
            found.append((f"{len(near)} rows of {what}", "; ".join(sorted({row.source for row in near}))))
    return found
