"""Fitted predictions are kept: the same rows are not fitted twice, other rows are, and a damaged file is made anew."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_controller.choosing import speed
from fleet_controller.choosing.reference import reference_speeds
from fleet_controller.choosing.work import Cell, MeasuredSpeed, Phase
from fleet_controller.operations import choosing_fit
from fleet_controller.operations.choosing_fit import SOLVED_FILE, fitted
from fleet_inventory.speed_reference import load_speed_figures, load_speed_models


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing_fit, "_last", None)


@pytest.fixture
def rows() -> tuple[MeasuredSpeed, ...]:
    """Few, so that a fit takes little."""
    return reference_speeds(load_speed_figures(), load_speed_models())[:12]


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Phase]]:
    """Which phases were fitted."""
    done: list[Phase] = []
    real = speed._fit_phase

    def counting(phase: Phase, phase_rows: tuple[MeasuredSpeed, ...]) -> speed._Phase:
        done.append(phase)
        return real(phase, phase_rows)

    monkeypatch.setattr(speed, "_fit_phase", counting)
    yield done


def cell_of(rows: tuple[MeasuredSpeed, ...], phase: Phase) -> Cell:
    return next(row.cell for row in rows if row.cell.phase is phase)


def test_only_what_is_asked_for_is_fitted_and_the_next_process_reads_it(
    rows: tuple[MeasuredSpeed, ...], fits: list[Phase], tmp_path: Path
) -> None:
    path = tmp_path / SOLVED_FILE
    decode, prefill = (cell_of(rows, phase) for phase in (Phase.DECODE, Phase.PREFILL))
    first = fitted(rows, path).predict(decode)
    assert fits == [Phase.DECODE]
    choosing_fit._last = None
    again = fitted(rows, path)
    assert again.predict(decode) == first
    assert fits == [Phase.DECODE]
    again.predict(prefill)
    assert fits == [Phase.DECODE, Phase.PREFILL]
    choosing_fit._last = None
    third = fitted(rows, path)
    assert (third.predict(decode), third.predict(prefill)) == (first, again.predict(prefill))
    assert fits == [Phase.DECODE, Phase.PREFILL]


def test_other_rows_are_fitted_anew(rows: tuple[MeasuredSpeed, ...], fits: list[Phase], tmp_path: Path) -> None:
    path = tmp_path / SOLVED_FILE
    fitted(rows, path).predict(cell_of(rows, Phase.DECODE))
    faster = tuple(row.model_copy(update={"tokens_per_second": 2 * row.tokens_per_second}) for row in rows)
    fitted(faster, path).predict(cell_of(rows, Phase.DECODE))
    assert fits == [Phase.DECODE, Phase.DECODE]


@pytest.mark.parametrize("damage", ["{", "[]", '{"key": "KEY", "solved": {"tg": "{}"}}'])
def test_a_damaged_file_is_made_anew(
    damage: str, rows: tuple[MeasuredSpeed, ...], fits: list[Phase], tmp_path: Path
) -> None:
    path = tmp_path / SOLVED_FILE
    fitted(rows, path).predict(cell_of(rows, Phase.DECODE))
    path.write_text(damage.replace("KEY", json.loads(path.read_text())["key"]))
    choosing_fit._last = None
    fitted(rows, path).predict(cell_of(rows, Phase.DECODE))
    assert fits == [Phase.DECODE, Phase.DECODE]
    assert "tg" in json.loads(path.read_text())["solved"]


def test_a_folder_that_cannot_be_written_to_costs_the_next_command_a_fit(
    rows: tuple[MeasuredSpeed, ...], tmp_path: Path
) -> None:
    model = fitted(rows, tmp_path / "missing" / SOLVED_FILE)
    assert model.predict(cell_of(rows, Phase.DECODE)).tokens_per_second > 0
