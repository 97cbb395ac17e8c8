"""The cross-hardware matrix: rows are model x quantization x backend, columns are hosts or chips. Pure.

A model's cells are of one test where they can be: that of the most cells at the depth that was asked for. A cell that
has only another client's, token count's or near depth's figure shows it with ≈. Figures are never averaged: of several
the newest counts, a measured one before an imported one before a reference.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fleet_controller.results.columns import Metric, Result, Source, lower_is_better
from fleet_controller.results.comparability import Level, depth_range, error_bar

# What `--metric` takes.
METRICS = {
    "tg": Metric.DECODE,
    "pp": Metric.PREFILL,
    "ttft": Metric.TIME_TO_FIRST_TOKEN,
    "energy": Metric.ENERGY,
}
_SOURCE_ORDER = {Source.MEASURED: 2, Source.IMPORTED: 1, Source.REFERENCE: 0}

Test = tuple[str, int, int, int]  # client, prompt tokens, generation tokens, depth
RowKey = tuple[str, str, str]  # model, quantization, backend


@dataclass(frozen=True)
class Entry:
    """A row of the database and its id."""

    result_id: int
    result: Result


@dataclass(frozen=True)
class Cell:
    """`best`: no other row of its model is as fast in this column; `tie`: its error bar overlaps the best one's."""

    entry: Entry
    level: Level
    best: bool = False
    tie: bool = False

    @property
    def result(self) -> Result:
        return self.entry.result


@dataclass(frozen=True)
class Matrix:
    """`tests` says for each model what its cells without ≈ are."""

    metric: Metric
    depth: int
    columns: tuple[str, ...]
    rows: tuple[RowKey, ...]
    cells: dict[tuple[RowKey, str], Cell]
    tests: dict[str, str] = field(default_factory=dict)


def build_matrix(entries: Iterable[Entry], metric: Metric, depth: int = 0, by: str = "host") -> Matrix:
    """`by` is "host" or "chip". Rows that were contaminated, or are of another metric or a far depth, have no part."""
    low, high = depth_range(depth)
    models: dict[str, list[Entry]] = {}
    for entry in entries:
        result = entry.result
        if result.test_kind is metric and result.mean is not None and low <= result.depth <= high:
            models.setdefault(result.model.casefold(), []).append(entry)
    cells: dict[tuple[RowKey, str], Cell] = {}
    tests: dict[str, str] = {}
    for found in models.values():
        test = _test_of_most_cells(found, depth, by)
        of_model = _chosen(found, test, depth, by)
        cells |= _marked(of_model, lower_is_better(metric))
        shown = next((cell.result for cell in of_model.values() if cell.level is Level.EQUAL), None)
        if shown is not None:
            tests[_row(shown)[0]] = f"{shown.test} by {shown.client}"
    return Matrix(
        metric=metric,
        depth=depth,
        columns=tuple(sorted({column for _, column in cells}, key=str.casefold)),
        rows=tuple(sorted({row for row, _ in cells}, key=lambda row: tuple(part.casefold() for part in row))),
        cells=cells,
        tests=tests,
    )


def _row(result: Result) -> RowKey:
    return result.model.lower(), result.quantization, result.backend


def _column(result: Result, by: str) -> str:
    return (result.chip if by == "chip" else result.host) or "unknown"


def _test(result: Result) -> Test:
    return result.client, result.prompt_tokens, result.generation_tokens, result.depth


def _test_of_most_cells(entries: Sequence[Entry], depth: int, by: str) -> Test:
    cells: dict[Test, set[tuple[RowKey, str]]] = {}
    for entry in entries:
        cells.setdefault(_test(entry.result), set()).add((_row(entry.result), _column(entry.result, by)))
    return max(cells, key=lambda test: (test[3] == depth, len(cells[test]), test))


def _chosen(entries: Sequence[Entry], test: Test, depth: int, by: str) -> dict[tuple[RowKey, str], Cell]:
    chosen: dict[tuple[RowKey, str], tuple[tuple[bool, int, int, int, int], Cell]] = {}
    for entry in entries:
        result = entry.result
        level = Level.EQUAL if _test(result) == test and result.depth == depth else Level.NEAR
        order = (
            level is Level.EQUAL,
            -abs(result.depth - depth),
            _SOURCE_ORDER[result.source],
            result.finished_unix_ms,
            entry.result_id,
        )
        key = (_row(result), _column(result, by))
        present = chosen.get(key)
        if present is None or order > present[0]:
            chosen[key] = (order, Cell(entry, level))
    return {key: cell for key, (_, cell) in chosen.items()}


def _marked(cells: dict[tuple[RowKey, str], Cell], lower: bool) -> dict[tuple[RowKey, str], Cell]:
    """The cells of one model with best and ties of each column; where nothing else is in a column, there is no best."""
    marked = dict(cells)
    for column in {column for _, column in cells}:
        keys = [key for key in cells if key[1] == column]
        if len(keys) > 1:
            best = (min if lower else max)(keys, key=lambda key: cells[key].result.mean or 0.0)
            rivals = [key for key in keys if key != best and _overlap(cells[key], cells[best])]
            for key in rivals:
                marked[key] = Cell(cells[key].entry, cells[key].level, tie=True)
            marked[best] = Cell(cells[best].entry, cells[best].level, best=not rivals, tie=bool(rivals))
    return marked


def _overlap(first: Cell, second: Cell) -> bool:
    bars = [error_bar(cell.result, cell.level) for cell in (first, second)]
    assert bars[0] is not None and bars[1] is not None
    return bars[0][0] <= bars[1][1] and bars[1][0] <= bars[0][1]
