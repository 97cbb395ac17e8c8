"""The lab notes' tables as reference rows: all of them, marked, and beside what was measured."""

from pathlib import Path

import pytest

from fleet_controller.results import reference
from fleet_controller.results.columns import Metric, Source
from fleet_controller.results.reference import sync_reference
from fleet_controller.results.reference_files import load_reference
from fleet_controller.results.store import (
    Filter,
    load_results,
    load_run,
    measured_fingerprints,
    save_results,
    select_results,
)
from fleet_controller.state import StateDatabase
from fleet_inventory.reference_data import reference_files
from support.notes_reference import notes_files
from support.result_rows import decode

SHARED = Path(__file__).parents[4] / "shared" / "data" / "lab_notes_results.csv"


@pytest.mark.skipif(not SHARED.exists(), reason="the notes' data lie beside the checkout, and are not there")
def test_the_shipped_file_is_the_notes_data() -> None:
    shipped = next(path for path in reference_files() if path.name == SHARED.name)
    assert shipped.read_bytes() == SHARED.read_bytes()


def test_every_row_says_where_it_is_from() -> None:
    rows, runs = load_reference(notes_files())
    assert {row.source for row in rows} == {Source.REFERENCE}
    assert {row.provenance.rpartition(":")[0] for row in rows} == {"lab-notes.md"}
    assert {row.chip for row in rows} == {"NVIDIA GeForce RTX 4090", "Apple M4"}
    assert {run.run_id for run in runs} == {row.run_id for row in rows}
    assert all(run.command for run in runs)


def test_what_was_measured_elsewhere_says_where_and_on_what() -> None:
    others = tuple(path for path in reference_files() if path not in notes_files())
    rows, _ = load_reference(others)
    assert {row.source for row in rows} == {Source.REFERENCE}
    assert all(row.provenance and row.driver_version and row.artifact_sha256 for row in rows)
    assert {row.model for row in rows} == {"qwen3.5-9b", "qwen3.5-35b-a3b", "glm-4.7-flash", "qwen3-8b"}


def test_mlx_trials_are_samples_of_one_row() -> None:
    rows, _ = load_reference(notes_files())
    decode_row = next(row for row in rows if row.backend == "mlx-lm" and row.test_kind is Metric.DECODE)
    assert (decode_row.mean, decode_row.deviation, decode_row.repetitions) == (39.023, None, 5)
    assert decode_row.samples == (39.657, 38.724, 39.224, 38.759, 38.754)
    assert (decode_row.model, decode_row.quantization) == ("qwen3.5-4b", "4bit")


def test_they_come_into_the_database_once_and_are_replaced_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = StateDatabase(tmp_path / "fleet.db")
    mine = decode()
    save_results(database, [mine])
    sync_reference(database)
    first = load_results(database)
    sync_reference(database)
    assert load_results(database) == first
    assert len(first) == 1 + len(load_reference(reference_files())[0])
    assert load_run(database, first[0].run_id) is not None
    monkeypatch.setattr(reference, "reference_files", lambda: ())
    monkeypatch.setattr(reference, "READER_VERSION", 2)
    sync_reference(database)
    assert [row.mean for row in load_results(database)] == [mine.mean]


def test_they_are_never_taken_for_measured_ones(tmp_path: Path) -> None:
    database = StateDatabase(tmp_path / "fleet.db")
    sync_reference(database)
    assert measured_fingerprints(database) == frozenset()
    assert list(select_results(database, Filter(sources=("measured",)))) == []


def test_an_export_of_ours_ships_as_reference_data_too(tmp_path: Path) -> None:
    from fleet_controller.results.exporting import csv_text

    path = tmp_path / "h100.csv"
    path.write_text(csv_text([decode(123.0)]))
    rows, runs = load_reference([path])
    assert [(row.mean, row.source) for row in rows] == [(123.0, Source.REFERENCE)]
    assert [run.run_id for run in runs] == [rows[0].run_id]
