"""The matrix: which figure a cell shows, and what is best, tied or only near."""

import csv
import io
import json
import re
from pathlib import Path

import pytest

from fleet_controller.results.columns import Metric, Result
from fleet_controller.results.comparability import Level
from fleet_controller.results.matrix import METRICS, Cell, Entry, Matrix, build_matrix
from fleet_controller.results.matrix_render import RENDERERS, cell_text, legend, table_cells
from fleet_controller.results.reference_files import load_reference
from support.notes_reference import notes_files
from support.result_rows import decode

NOW = 1_790_000_000_000
NOTES = Path(__file__).parent / "data" / "lab-notes-results.md"


def matrix_of(*rows: Result, metric: Metric = Metric.DECODE, depth: int = 0, by: str = "host") -> Matrix:
    return build_matrix([Entry(number, row) for number, row in enumerate(rows, start=1)], metric, depth, by)


def cell(matrix: Matrix, quantization: str = "Q4_K_M", column: str = "gpu1") -> Cell:
    return next(found for (row, name), found in matrix.cells.items() if row[1] == quantization and name == column)


def test_the_newest_figure_counts_and_nothing_is_averaged() -> None:
    found = matrix_of(
        decode(90.0, finished_unix_ms=1), decode(110.0, finished_unix_ms=3), decode(70.0, finished_unix_ms=2)
    )
    assert cell(found).result.mean == 110.0


def test_a_measured_figure_counts_before_an_imported_and_a_reference_one() -> None:
    rows = [
        decode(1.0, source="reference", finished_unix_ms=9),
        decode(2.0, source="measured", finished_unix_ms=1),
        decode(3.0, source="imported", finished_unix_ms=5),
    ]
    assert cell(matrix_of(*rows)).result.mean == 2.0
    assert cell(matrix_of(rows[0], rows[2])).result.mean == 3.0


def test_the_best_of_a_model_in_a_column_is_marked_and_what_overlaps_is_a_tie() -> None:
    clear = matrix_of(decode(100.0, 1.0), decode(80.0, 1.0, quantization="Q8_0"))
    assert (cell(clear).best, cell(clear).tie, cell(clear, "Q8_0").best) == (True, False, False)
    close = matrix_of(decode(100.0, 1.0), decode(99.0, 1.0, quantization="Q8_0"), decode(50.0, quantization="F16"))
    assert [(cell(close, name).best, cell(close, name).tie) for name in ("Q4_K_M", "Q8_0", "F16")] == [
        (False, True),
        (False, True),
        (False, False),
    ]


def test_of_times_and_energy_the_least_is_best() -> None:
    rows = [decode(50.0, 0.1, test_kind="ttft"), decode(90.0, 0.1, test_kind="ttft", quantization="Q8_0")]
    assert cell(matrix_of(*rows, metric=Metric.TIME_TO_FIRST_TOKEN)).best


def test_what_stands_alone_in_its_column_is_not_called_best() -> None:
    found = matrix_of(decode(), decode(host="mac1", quantization="Q8_0"), decode(model="other"))
    assert not any(one.best or one.tie for one in found.cells.values())


def test_another_clients_figure_fills_a_cell_but_is_marked() -> None:
    found = matrix_of(
        decode(100.0),
        decode(101.0, host="gpu2"),
        decode(99.0, host="gpu4"),
        decode(95.0, host="gpu3", client="llama-benchy", generation_tokens=32),
        decode(94.0, host="gpu2", client="llama-benchy", generation_tokens=32),
    )
    levels = {column: one.level for (_, column), one in found.cells.items()}
    assert levels == {"gpu1": Level.EQUAL, "gpu2": Level.EQUAL, "gpu3": Level.NEAR, "gpu4": Level.EQUAL}
    assert cell(found, column="gpu2").result.mean == 101.0
    assert "≈ 95.00 ± 1.00" in cell_text(cell(found, column="gpu3"), NOW)


def test_a_near_depth_is_marked_and_a_far_one_is_left_out() -> None:
    found = matrix_of(decode(1.0, depth=1024), decode(2.0, host="gpu2", depth=8192))
    assert [(column, one.level) for (_, column), one in found.cells.items()] == [("gpu1", Level.NEAR)]


def test_near_figures_tie_sooner() -> None:
    rows = [decode(100.0, 0.1), decode(90.0, 0.1, quantization="Q8_0", client="other")]
    assert cell(matrix_of(*rows)).tie
    assert cell(matrix_of(rows[0], rows[1].model_copy(update={"client": "llama-bench"}))).best


def test_columns_are_hosts_or_chips() -> None:
    rows = [decode(1.0, host="a", finished_unix_ms=1), decode(2.0, host="b", finished_unix_ms=2)]
    assert matrix_of(*rows).columns == ("a", "b")
    by_chip = matrix_of(*rows, by="chip")
    assert by_chip.columns == ("NVIDIA GeForce RTX 4090",)
    assert [one.result.mean for one in by_chip.cells.values()] == [2.0]


def test_models_are_one_whatever_their_case_and_contaminated_rows_have_no_part() -> None:
    bad = decode(None, None, status="contaminated", finished_unix_ms=NOW + 1)
    found = matrix_of(decode(model="Qwen3.5-4B"), bad)
    assert [row[0] for row in found.rows] == ["qwen3.5-4b"]
    assert cell(found).result.mean == 100.0


def test_a_cell_tells_source_age_and_version() -> None:
    measured = cell(matrix_of(decode(finished_unix_ms=NOW - 3 * 86_400_000)))
    assert cell_text(measured, NOW) == "100.00 ± 1.00 (3 d, b8396)"
    reference = cell(matrix_of(decode(source="reference", finished_unix_ms=0)))
    assert cell_text(reference, NOW) == "100.00 ± 1.00 (ref, b8396)"
    assert cell_text(None, NOW) == "-"


FIGURE = re.compile(r"\| +(pp|tg)(?:1024|64|2048|32)(?: @ d(\d+))? \| +([\d.]+ ± [\d.]+) \|")


@pytest.mark.parametrize("client", ["llama-bench", "llama-benchy"])
def test_the_matrix_shows_the_figures_of_the_notes(client: str) -> None:
    rows = [row for row in load_reference(notes_files())[0] if row.client == client]
    entries = [Entry(number, row) for number, row in enumerate(rows, start=1)]
    shown: dict[tuple[str, int], str] = {}
    for metric in ("pp", "tg"):
        for depth in (0, 8192, 16384, 32768, 65536):
            cells = table_cells(build_matrix(entries, METRICS[metric], depth), NOW)[1]
            shown[metric, depth] = "\n".join(text for row in cells for text in row)
    lines = [line for line in NOTES.read_text().splitlines() if line.startswith("|")]
    wanted = [
        found.groups()
        for line in lines
        if ("GiB" in line) == (client == "llama-bench") and (found := FIGURE.search(line))
    ]
    assert len(wanted) == {"llama-bench": 60, "llama-benchy": 32}[client]
    for metric, at, figure in wanted:
        assert figure in shown[metric, int(at or 0)], (metric, at, figure)


def test_every_format_says_the_same() -> None:
    found = matrix_of(decode(100.0, 1.0), decode(80.0, 1.0, quantization="Q8_0"), decode(5.0, host="mac1"))
    document = json.loads(RENDERERS["json"](found, NOW))
    rows = list(csv.DictReader(io.StringIO(RENDERERS["csv"](found, NOW))))
    assert [one["mean"] for one in document["cells"]] == [float(one["mean"]) for one in rows] == [100.0, 5.0, 80.0]
    assert [one["best"] for one in document["cells"]] == [True, False, False]
    markdown = RENDERERS["md"](found, NOW)
    assert "\\* 100.00 ± 1.00 (0 s, b8396)" in markdown
    assert "tg in t/s at depth 0" in markdown
    assert legend(found)[1] == "qwen3.5-4b: tg64 by llama-bench"


def test_an_empty_matrix_has_no_rows() -> None:
    found = matrix_of()
    assert (found.rows, found.columns, json.loads(RENDERERS["json"](found, NOW))["cells"]) == ((), (), [])
