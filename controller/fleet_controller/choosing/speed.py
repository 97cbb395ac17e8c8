"""Predicting tokens/s of cells that nobody measured, from those that somebody did and from what chips can do.

A prediction carries an 80 % interval and says what it rests on. Pure: rows in, predictions out; the order of the rows
changes nothing.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from fleet_controller.choosing.least_squares import Observation, Solution, Term, fit, log_sum
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
    """Each phase is fitted at its first question. Raises ValueError for rows that are not positive.

    `kept` has what the fit of a phase came to before, from the same rows, as `keep` was given it: such a phase is not
    fitted again; what cannot be read is.
    """

    def __init__(
        self,
        rows: Iterable[MeasuredSpeed],
        kept: Mapping[Phase, str] | None = None,
        keep: Callable[[Phase, str], None] | None = None,
    ) -> None:
        ordered = sorted(rows, key=_order)
        if any(row.tokens_per_second <= 0 for row in ordered):
            raise ValueError("a measured speed is above zero")
        self._rows = {phase: tuple(row for row in ordered if row.cell.phase is phase) for phase in Phase}
        self._kept, self._keep = dict(kept or {}), keep
        self._fitted: dict[Phase, _Phase] = {}

    def _of(self, phase: Phase) -> _Phase:
        if phase not in self._fitted:
            rows = self._rows[phase]
            found = _restored(phase, rows, self._kept[phase]) if phase in self._kept else None
            if found is None:
                found = _fit_phase(phase, rows)
                if self._keep is not None:
                    self._keep(phase, _solved(found))
            self._fitted[phase] = found
        return self._fitted[phase]

    def predict(self, cell: Cell) -> Prediction:
        phase = self._of(cell.phase)
        terms = terms_of(cell)
        found = _evaluate(phase, terms)
        variance = _variance(phase, found.gradient) + ROW_DEVIATION[_PHASE_NAMES[cell.phase]] ** 2
        half = _NORMAL_90_PERCENT * math.sqrt(variance)
        return Prediction(
            tokens_per_second=math.exp(-found.log_time),
            low=math.exp(-found.log_time - half),
            high=math.exp(-found.log_time + half),
            shares=found.shares,
            rests_on=_basis(phase, cell, terms),
        )

    def faster_by(self, first: Cell, second: Cell) -> tuple[float, float]:
        """The 80 % interval of the first's speed over the second's, both predicted; one phase.

        Narrower than the two predictions suggest: what is not known of a device or an engine that both share falls out.
        """
        phase = self._of(first.phase)
        one, other = (_evaluate(phase, terms_of(cell)) for cell in (first, second))
        variance = _variance(phase, _difference(one.gradient, other.gradient))
        half = _NORMAL_90_PERCENT * math.sqrt(variance + 2 * ROW_DEVIATION[_PHASE_NAMES[first.phase]] ** 2)
        middle = other.log_time - one.log_time
        return math.exp(middle - half), math.exp(middle + half)

    def factors(self, phase: Phase) -> dict[Parameter, float]:
        """The fitted factors, for showing and for tests."""
        found = self._of(phase)
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
        unsure = math.hypot(deviation, row.deviation)
        observations.append(Observation(terms, -math.log(row.tokens_per_second), unsure, weight))
    solution = fit(observations, [prior_of(name) for name in places])
    return _Phase(phase, places, solution, rows)


def _solved(phase: _Phase) -> str:
    """What a fit came to, as JSON."""
    return json.dumps({"places": list(phase.places), "solution": asdict(phase.solution)}, separators=(",", ":"))


def _restored(phase: Phase, rows: tuple[MeasuredSpeed, ...], solved: str) -> _Phase | None:
    """What `_solved` wrote; None where it is something else."""
    try:
        document = json.loads(solved)
        found = document["solution"]
        factor = tuple(tuple(row) for row in found["factor"])
        solution = Solution(tuple(found["values"]), factor, found["loss"], found["iterations"])
        places = {tuple(name): place for place, name in enumerate(document["places"])}
    except (ValueError, KeyError, TypeError):
        return None
    whole = len(places) == len(solution.values) == len(factor)
    return _Phase(phase, places, solution, rows) if whole else None


def _group(cell: Cell) -> tuple[str, str, str]:
    return cell.model.name, cell.device.name, cell.engine.key


@dataclass(frozen=True)
class _Evaluated:
    """The logarithm of the time, its slope in each parameter, and the share of each term."""

    log_time: float
    gradient: dict[Parameter, float]
    shares: tuple[tuple[str, float], ...]


def _evaluate(phase: _Phase, terms: Sequence[NamedTerm]) -> _Evaluated:
    """Parameters that no row has keep what their priors say."""
    names = list(dict.fromkeys(name for term in terms for name in term.parameters))
    places = {name: place for place, name in enumerate(names)}
    values = [_value(phase, name) for name in names]
    indexed = [Term(log_seconds(term), tuple(places[name] for name in term.parameters)) for term in terms]
    log_time, slopes = log_sum(indexed, values)
    shares = tuple(
        (named.what, math.exp(term.logarithm + sum(values[index] for index in term.parameters) - log_time))
        for named, term in zip(terms, indexed, strict=True)
    )
    return _Evaluated(log_time, {names[index]: slope for index, slope in slopes.items()}, shares)


def _value(phase: _Phase, name: Parameter) -> float:
    place = phase.places.get(name)
    return prior_of(name).mean if place is None else phase.solution.values[place]


def _variance(phase: _Phase, gradient: Mapping[Parameter, float]) -> float:
    """Of a linear combination of parameters; those that no row has are independent of all others."""
    fitted = {phase.places[name]: slope for name, slope in gradient.items() if name in phase.places}
    unseen = ((slope, prior_of(name).deviation) for name, slope in gradient.items() if name not in phase.places)
    return phase.solution.variance_of(fitted) + sum((slope * deviation) ** 2 for slope, deviation in unseen)


def _difference(first: Mapping[Parameter, float], second: Mapping[Parameter, float]) -> dict[Parameter, float]:
    return {name: first.get(name, 0.0) - second.get(name, 0.0) for name in (*first, *second)}


def _basis(phase: _Phase, cell: Cell, terms: Sequence[NamedTerm]) -> tuple[Basis, ...]:
    device = cell.device
    bases = [Basis(kind="rows", text=text, source=source) for text, source in _row_texts(phase.rows, cell)]
    facts = f"{device.name}: {device.bandwidth / 1e9:g} GB/s"
    if device.matrix_operations:
        facts += f", {device.matrix_operations / 1e12:g} TFLOPS"
    if device.guessed:
        facts += ", guessed from its name"
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
