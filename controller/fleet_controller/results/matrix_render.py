"""The matrix as text. Each format is one function of (matrix, now); a new one is one line in RENDERERS."""

import csv
import io
import json
from collections.abc import Callable
from typing import Any

from fleet_controller.results.columns import Source
from fleet_controller.results.comparability import Level
from fleet_controller.results.figures import age, figure
from fleet_controller.results.markdown import tabulated
from fleet_controller.results.matrix import Cell, Matrix

NEAR, BEST, TIE = "≈", "*", "="
_SOURCE_WORDS = {Source.REFERENCE: "ref", Source.IMPORTED: "imported", Source.MEASURED: ""}
ROW_COLUMNS = ("model", "quantization", "backend")


def cell_text(cell: Cell | None, now_unix_ms: int) -> str:
    """ "* 84.54 ± 0.56 (ref, b8396)", "≈ 39.0 ± 0.4 (3 d, 0.31.1)", "-"."""
    if cell is None:
        return "-"
    result = cell.result
    marks = (BEST if cell.best else TIE if cell.tie else "") + (NEAR if cell.level is Level.NEAR else "")
    when = age(result.finished_unix_ms, now_unix_ms)
    about = ", ".join(part for part in (_SOURCE_WORDS[result.source], when, result.backend_version) if part)
    return f"{marks} {figure(result)}".strip() + (f" ({about})" if about else "")


def table_cells(matrix: Matrix, now_unix_ms: int) -> tuple[list[str], list[list[str]]]:
    """Header and rows, for a table on a terminal."""
    header = ["MODEL", "QUANT", "BACKEND", *matrix.columns]
    rows = [
        [*row, *(cell_text(matrix.cells.get((row, column)), now_unix_ms) for column in matrix.columns)]
        for row in matrix.rows
    ]
    return header, rows


def legend(matrix: Matrix) -> list[str]:
    """What the figures are, and what the marks that occur mean."""
    cells = matrix.cells.values()
    unit = next((cell.result.unit for cell in cells), "")
    lines = [f"{matrix.metric.value} in {unit} at depth {matrix.depth}"]
    lines += [f"{model}: {test}" for model, test in sorted(matrix.tests.items())]
    marks = (
        (f"{BEST} best of its model in its column", any(cell.best for cell in cells)),
        (f"{TIE} as good as the best of its model: the error bars overlap", any(cell.tie for cell in cells)),
        (
            f"{NEAR} of another client, token count or near depth: good for choosing, no measurement of this test",
            any(cell.level is Level.NEAR for cell in cells),
        ),
        (
            "ref: reference data that ships with fleet, measured by others",
            any(cell.result.source is Source.REFERENCE for cell in cells),
        ),
    )
    return lines + [text for text, occurs in marks if occurs]


def as_markdown(matrix: Matrix, now_unix_ms: int) -> str:
    header, rows = table_cells(matrix, now_unix_ms)
    escaped = [[cell.replace("*", "\\*").replace("|", "\\|") for cell in row] for row in rows]
    notes = "".join(f"- {line.replace('*', chr(92) + '*')}\n" for line in legend(matrix))
    return f"{tabulated(header, escaped)}\n{notes}" if rows else notes


def as_csv(matrix: Matrix, now_unix_ms: int) -> str:
    """One line a cell, so that any tool can pivot it."""
    target = io.StringIO()
    documents = [_cell_document(row, column, matrix.cells[row, column]) for row, column in _keys(matrix)]
    writer = csv.DictWriter(target, _CELL_FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(documents)
    return target.getvalue()


def as_json(matrix: Matrix, now_unix_ms: int) -> str:
    return json.dumps(document(matrix), indent=2, ensure_ascii=False) + "\n"


def document(matrix: Matrix) -> dict[str, Any]:
    return {
        "metric": matrix.metric.value,
        "depth": matrix.depth,
        "columns": list(matrix.columns),
        "rows": [dict(zip(ROW_COLUMNS, row, strict=True)) for row in matrix.rows],
        "tests": matrix.tests,
        "cells": [_cell_document(row, column, matrix.cells[row, column]) for row, column in _keys(matrix)],
    }


def _keys(matrix: Matrix) -> list[tuple[tuple[str, str, str], str]]:
    return [(row, column) for row in matrix.rows for column in matrix.columns if (row, column) in matrix.cells]


_CELL_FIELDS = (
    *ROW_COLUMNS,
    "column",
    "mean",
    "deviation",
    "unit",
    "test",
    "client",
    "level",
    "best",
    "tie",
    "source",
    "host",
    "chip",
    "backend_version",
    "finished_unix_ms",
    "result_id",
)


def _cell_document(row: tuple[str, str, str], column: str, cell: Cell) -> dict[str, Any]:
    result = cell.result
    return {
        **dict(zip(ROW_COLUMNS, row, strict=True)),
        "column": column,
        "mean": result.mean,
        "deviation": result.deviation,
        "unit": result.unit,
        "test": result.test,
        "client": result.client,
        "level": cell.level.value,
        "best": cell.best,
        "tie": cell.tie,
        "source": result.source.value,
        "host": result.host,
        "chip": result.chip,
        "backend_version": result.backend_version,
        "finished_unix_ms": result.finished_unix_ms or None,
        "result_id": cell.entry.result_id,
    }


RENDERERS: dict[str, Callable[[Matrix, int], str]] = {"md": as_markdown, "csv": as_csv, "json": as_json}
