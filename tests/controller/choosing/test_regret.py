"""What the choice loses where its model was never measured, on the reference rows, and drivers that differ by depth."""

from functools import cache

import pytest

from benchmarks.speed_choices import Choice, choices
from fleet_controller.choosing.reference import reference_speeds
from fleet_controller.choosing.speed import SpeedModel
from fleet_controller.choosing.work import Cell, MeasuredSpeed, Phase
from fleet_inventory.speed_reference import load_speed_figures, load_speed_models

MOST_REGRET = 0.1
# Here all other models but GLM-4.7-Flash say that ROCm is faster, by 1.2 to 2.9 times (docs/speed_prediction.md).
LOST = ("qwen3.5-35b-a3b", 65536, "llama.cpp (vulkan radv) UD-Q4_K_XL")


@cache
def rows() -> tuple[MeasuredSpeed, ...]:
    return reference_speeds(load_speed_figures(), load_speed_models())


@cache
def fitted(without: str) -> SpeedModel:
    return SpeedModel(row for row in rows() if row.cell.model.name != without)


def chosen(phase: Phase) -> list[Choice]:
    return choices(rows(), {name: fitted(name) for name in {row.cell.model.name for row in rows()}}, phase)


def what(choice: Choice) -> tuple[str, int, str]:
    return choice.model, choice.depth, choice.best


@pytest.mark.parametrize(("phase", "known"), [(Phase.DECODE, set()), (Phase.PREFILL, {LOST})])
def test_a_choice_without_any_row_of_its_model_loses_at_most_a_tenth(
    phase: Phase, known: set[tuple[str, int, str]]
) -> None:
    found = chosen(phase)
    assert len(found) == 48
    assert {what(choice) for choice in found if choice.regret > MOST_REGRET} == known
    assert sorted(choice.regret for choice in found)[len(found) // 2] == 0


def vulkan(driver: str, depth: int) -> Cell:
    return next(
        row.cell
        for row in rows()
        if (row.cell.model.name, row.cell.phase) == ("gpt-oss-20b", Phase.DECODE)
        and (row.cell.engine.driver, row.cell.depth) == (driver, depth)
    )


def test_a_driver_that_computes_attention_slowly_falls_back_with_depth_where_heads_share_keys() -> None:
    model = fitted("gpt-oss-20b")
    ahead = [model.faster_by(vulkan("radv", depth), vulkan("amdvlk", depth)) for depth in (0, 65536)]
    assert ahead[1][0] * ahead[1][1] > 1.1 * ahead[0][0] * ahead[0][1]  # measured: 1.08 times at first, 1.24 at last
