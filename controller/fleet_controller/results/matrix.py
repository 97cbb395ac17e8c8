"""The cross-hardware matrix: rows are model x quantization x backend, columns are hosts. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

PREFILL_PREFIX = "pp"
DECODE_PREFIX = "tg"


@dataclass(frozen=True)
class Figure:
    """One measured speed, as the matrix needs it."""

    host: str
    model: str
    quantization: str
    backend: str
    test: str
    tokens_per_second: float
    finished_unix_ms: int


@dataclass(frozen=True)
class Matrix:
    """`rows` are (model, quantization, backend, tests); `cells` hold "decode / prefill" by (row, host)."""

    hosts: tuple[str, ...]
    rows: tuple[tuple[str, str, str, str], ...]
    cells: dict[tuple[tuple[str, str, str, str], str], str]


def build_matrix(figures: Iterable[Figure]) -> Matrix:
    """The newest figure of each host wins. Figures are never averaged, and other token counts get a row of their own.

    A bench run measures one prefill and one decode test in the same moment, so a cell pairs those of one run.
    """
    runs: dict[tuple[str, str, str, str, int], dict[str, Figure]] = {}
    for figure in figures:
        key = (figure.host, figure.model, figure.quantization, figure.backend, figure.finished_unix_ms)
        runs.setdefault(key, {})[figure.test] = figure
    cells: dict[tuple[tuple[str, str, str, str], str], tuple[int, str]] = {}
    for (host, model, quantization, backend, finished), tests in runs.items():
        decode = _first(tests, DECODE_PREFIX)
        prefill = _first(tests, PREFILL_PREFIX)
        label = " / ".join(figure.test for figure in (decode, prefill) if figure)
        row = (model, quantization, backend, label)
        present = cells.get((row, host))
        if present is None or finished >= present[0]:
            cells[row, host] = (finished, f"{_speed(decode)} / {_speed(prefill)}")
    rows = tuple(sorted({row for row, _ in cells}))
    hosts = tuple(sorted({host for _, host in cells}))
    return Matrix(hosts, rows, {key: text for key, (_, text) in cells.items()})


def _first(tests: dict[str, Figure], prefix: str) -> Figure | None:
    return next((tests[name] for name in sorted(tests) if name.startswith(prefix)), None)


def _speed(figure: Figure | None) -> str:
    """Three figures that mean something: 46076 -> "46,076", 244.6 -> "245", 8.31 -> "8.31"."""
    if figure is None:
        return "-"
    value = figure.tokens_per_second
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
