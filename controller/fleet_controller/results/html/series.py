"""The lines of the charts: speed against depth, one line for each way a model was run. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fleet_controller.results.columns import Metric, Result
from fleet_controller.results.comparability import error_bar
from fleet_controller.results.matrix import Entry

# As many as can be told apart in one chart.
LINES_MOST = 8
CHART_METRICS = (Metric.DECODE, Metric.PREFILL)


@dataclass(frozen=True)
class Point:
    """`low` and `high` are the error bar; all three in tokens/s."""

    depth: int
    mean: float
    low: float
    high: float
    entry: Entry


@dataclass(frozen=True)
class Way:
    """What one line is of."""

    host: str
    quantization: str
    backend: str
    version: str
    client: str
    source: str

    @property
    def label(self) -> str:
        engine = f"{self.backend} {self.version}".strip()
        return " · ".join(part for part in (self.host, self.quantization, engine, self.client, self.source) if part)


@dataclass(frozen=True)
class Line:
    way: Way
    points: dict[Metric, tuple[Point, ...]]


@dataclass(frozen=True)
class ModelCharts:
    """`figures` are the lines of each figure, LINES_MOST at most; none where nothing was measured at two depths."""

    model: str
    figures: tuple[tuple[Line, ...], ...]


def charts_of(entries: Iterable[Entry]) -> list[ModelCharts]:
    """Models by name; the lines of one host stand together."""
    models: dict[str, dict[Way, list[Entry]]] = {}
    for entry in entries:
        result = entry.result
        if result.test_kind in CHART_METRICS and result.mean is not None:
            models.setdefault(result.model.lower(), {}).setdefault(_way(result), []).append(entry)
    return [ModelCharts(model, _figures(ways)) for model, ways in sorted(models.items())]


def _way(result: Result) -> Way:
    return Way(
        host=result.host,
        quantization=result.quantization,
        backend=result.backend,
        version=result.backend_version,
        client=result.client,
        source=result.source.value,
    )


def _figures(ways: dict[Way, list[Entry]]) -> tuple[tuple[Line, ...], ...]:
    order = sorted(ways, key=lambda way: (way.host, way.backend, way.quantization, way.version, way.client))
    lines = [Line(way, {metric: _points(ways[way], metric) for metric in CHART_METRICS}) for way in order]
    if not any(len(points) > 1 for line in lines for points in line.points.values()):
        return ()
    return tuple(tuple(lines[start : start + LINES_MOST]) for start in range(0, len(lines), LINES_MOST))


def _points(entries: Sequence[Entry], metric: Metric) -> tuple[Point, ...]:
    """Of one token count, the one that was measured at most depths; the newest row of each depth."""
    mine = [entry for entry in entries if entry.result.test_kind is metric]
    depths: dict[int, set[int]] = {}
    for entry in mine:
        depths.setdefault(_tokens(entry.result), set()).add(entry.result.depth)
    tokens = max(depths, key=lambda count: (len(depths[count]), count), default=0)
    chosen: dict[int, Entry] = {}
    for entry in sorted(mine, key=lambda entry: (entry.result.finished_unix_ms, entry.result_id)):
        if _tokens(entry.result) == tokens:
            chosen[entry.result.depth] = entry
    return tuple(_point(chosen[depth]) for depth in sorted(chosen))


def _tokens(result: Result) -> int:
    return result.generation_tokens or result.prompt_tokens


def _point(entry: Entry) -> Point:
    bar, mean = error_bar(entry.result), entry.result.mean
    assert bar is not None and mean is not None
    return Point(entry.result.depth, mean, bar[0], bar[1], entry)
