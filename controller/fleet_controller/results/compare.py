"""Two sets of results side by side: per common cell the difference, its interval and a verdict. Pure."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from fleet_controller.results.columns import Metric, Result, Source, lower_is_better
from fleet_controller.results.matrix import Entry
from fleet_controller.results.statistics import Difference, estimate_of, welch

# What a selector may name, and the column that it means.
SELECTOR_COLUMNS = {
    "host": "host",
    "chip": "chip",
    "backend": "backend",
    "version": "backend_version",
    "commit": "backend_commit",
    "model": "model",
    "quant": "quantization",
    "quantization": "quantization",
    "client": "client",
    "suite": "suite",
    "source": "source",
    "flags": "flags",
    "driver": "driver_version",
    "run": "run_id",
}
# What two rows must agree in to be one cell, unless a selector names it: naming it says that it is what differs.
CELL_COLUMNS = (
    "host",
    "model",
    "quantization",
    "backend",
    "client",
    "test_kind",
    "prompt_tokens",
    "generation_tokens",
    "depth",
    "concurrency",
    "kv_type",
)
_SOURCE_ORDER = {Source.MEASURED: 2, Source.IMPORTED: 1, Source.REFERENCE: 0}


class SelectorError(ValueError):
    """A selector that cannot be read; the text says what may be written."""


class Verdict(StrEnum):
    FASTER = "faster"
    SLOWER = "slower"
    NONE_SHOWN = "no difference shown"


@dataclass(frozen=True)
class Selector:
    """Columns and the values that they must have, compared without case."""

    text: str
    wanted: tuple[tuple[str, str], ...]

    def takes(self, result: Result) -> bool:
        return all(str(getattr(result, column)).casefold() == value.casefold() for column, value in self.wanted)


@dataclass(frozen=True)
class Comparison:
    """One cell. `difference` is second - first, or None where too few repetitions are known for an interval."""

    first: Entry
    second: Entry
    difference: Difference | None

    @property
    def ratio(self) -> float:
        return (self.second.result.mean or 0.0) / (self.first.result.mean or math.nan)

    @property
    def verdict(self) -> Verdict:
        """Of the second against the first. Fewer milliseconds are faster; fewer joules count as faster, too."""
        if self.difference is None or not self.difference.shown:
            return Verdict.NONE_SHOWN
        more = self.difference.difference > 0
        return Verdict.FASTER if more != lower_is_better(self.first.result.test_kind) else Verdict.SLOWER


def parse_selector(text: str) -> Selector:
    """ "backend=llama.cpp,version=b8396,host=gpu1". Raises SelectorError."""
    wanted: list[tuple[str, str]] = []
    for part in text.split(","):
        name, separator, value = part.partition("=")
        column = SELECTOR_COLUMNS.get(name.strip())
        if not separator or not value.strip() or column is None:
            raise SelectorError(f"'{part.strip()}' is not NAME=VALUE with one of: {', '.join(SELECTOR_COLUMNS)}")
        wanted.append((column, value.strip()))
    return Selector(text, tuple(wanted))


def compare(entries: Iterable[Entry], first: Selector, second: Selector) -> list[Comparison]:
    """Every cell that both selectors have, in the order of model, backend and test."""
    named = {column for selector in (first, second) for column, _ in selector.wanted}
    columns = [column for column in CELL_COLUMNS if column not in named]
    sides: tuple[dict[tuple[object, ...], Entry], dict[tuple[object, ...], Entry]] = ({}, {})
    for entry in entries:
        if entry.result.mean is not None:
            key = tuple(_plain(getattr(entry.result, column)) for column in columns)
            for selector, side in zip((first, second), sides, strict=True):
                if selector.takes(entry.result) and (key not in side or _order(entry) > _order(side[key])):
                    side[key] = entry
    common = [key for key in sides[0] if key in sides[1] and sides[0][key] != sides[1][key]]
    found = [Comparison(sides[0][key], sides[1][key], _difference(sides[0][key], sides[1][key])) for key in common]
    return sorted(found, key=_listing_order)


def _listing_order(comparison: Comparison) -> tuple[object, ...]:
    result = comparison.first.result
    kinds = list(Metric)
    return (
        result.model.casefold(),
        result.quantization,
        result.backend,
        result.host,
        result.client,
        result.depth,
        kinds.index(result.test_kind),
        result.prompt_tokens,
        result.generation_tokens,
        result.concurrency,
    )


def _order(entry: Entry) -> tuple[int, int, int]:
    return _SOURCE_ORDER[entry.result.source], entry.result.finished_unix_ms, entry.result_id


def _plain(value: object) -> object:
    return value.casefold() if isinstance(value, str) else value


def _difference(first: Entry, second: Entry) -> Difference | None:
    estimates = [estimate_of(entry.result) for entry in (first, second)]
    return welch(estimates[0], estimates[1]) if estimates[0] and estimates[1] else None


@dataclass(frozen=True)
class Overall:
    """One metric over its cells; `ratio` is the geometric mean of second / first."""

    metric: Metric
    cells: int
    faster: int
    slower: int
    ratio: float


def overall(comparisons: Iterable[Comparison]) -> list[Overall]:
    """One line for each metric, in the order of the metrics."""
    groups: dict[Metric, list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault(comparison.first.result.test_kind, []).append(comparison)
    return [
        Overall(
            metric=metric,
            cells=len(groups[metric]),
            faster=sum(comparison.verdict is Verdict.FASTER for comparison in groups[metric]),
            slower=sum(comparison.verdict is Verdict.SLOWER for comparison in groups[metric]),
            ratio=_geometric_mean([comparison.ratio for comparison in groups[metric]]),
        )
        for metric in Metric
        if metric in groups
    ]


def _geometric_mean(ratios: list[float]) -> float:
    usable = [ratio for ratio in ratios if ratio > 0 and math.isfinite(ratio)]
    return math.exp(math.fsum(map(math.log, usable)) / len(usable)) if usable else math.nan
