"""Made-up models: what the controller says of their sizes is what the agent makes, and their names tell all."""

from pathlib import Path

import pytest

from fleet_agent.jobs.model import GeneratedModel
from fleet_agent.measuring.generated_model import check, tensor_bytes, tensors
from fleet_controller.benchmarking.calibration import (
    CalibrationCell,
    CalibrationModel,
    calibration_work,
    is_calibration,
    load_calibration,
)
from fleet_controller.benchmarking.suites import SuiteError
from fleet_controller.domain.facts import GpuFacts, HostFacts, HostLayout

NOWHERE = Path("/nonexistent")
SHIPPED = load_calibration(NOWHERE)
CELLS = [*SHIPPED.gpu, *SHIPPED.cpu]


def made(model: CalibrationModel) -> GeneratedModel:
    return GeneratedModel(**model.generated.model_dump())


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.model.name} {cell.model.quantization}")
def test_sizes_are_those_of_the_file(cell: CalibrationCell) -> None:
    check(made(cell.model))
    found = tensors(made(cell.model))
    padded = sum(map(tensor_bytes, found))
    assert padded - 32 * len(found) <= cell.model.weights_bytes <= padded
    counts = []
    for _, dimensions, _ in found:
        count = 1
        for dimension in dimensions:
            count *= dimension
        counts.append(count)
    assert cell.model.parameters == sum(counts)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.model.name} {cell.model.quantization}")
def test_a_name_tells_the_whole_shape(cell: CalibrationCell) -> None:
    assert is_calibration(cell.model.name)
    assert calibration_work(cell.model.name) == cell.model.work


def test_names_of_other_models_tell_nothing() -> None:
    assert calibration_work("qwen3.5-4b") is None
    assert not is_calibration("calibration-2x4096")


def test_the_shapes_tell_the_factors_apart() -> None:
    """In one most of a token's time is reading, in the other what its layers cost."""
    for cells in (SHIPPED.gpu, SHIPPED.cpu):
        wide, _, deep = (cell.model for cell in cells)
        per_layer = [model.weights_bytes / model.layers for model in (wide, deep)]
        assert per_layer[0] > 30 * per_layer[1]
        assert cells[2].part.depths[0] == 0 < cells[2].part.depths[1]
        assert {cell.model.quantization for cell in cells} == {"Q4_K_M", "Q8_0"}


def test_what_a_gpu_gets_is_more_than_a_cache_and_no_download() -> None:
    assert all(400e6 < cell.model.weights_bytes < 1.2e9 for cell in SHIPPED.gpu)
    assert all(cell.model.weights_bytes < 450e6 for cell in SHIPPED.cpu)


def test_a_host_without_a_gpu_gets_small_models() -> None:
    plain = HostFacts(layout=HostLayout(state_dir="/s", engines_dir="/e", hf_home="/h"))
    assert SHIPPED.cells_for(plain) == SHIPPED.cpu
    assert SHIPPED.cells_for(plain.model_copy(update={"gpus": (GpuFacts(name="x"),)})) == SHIPPED.gpu


def test_a_calibration_of_the_users_own_is_checked_field_by_field(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "controller/fleet_controller/benchmarking/calibration.yaml").read_text()
    (tmp_path / "calibrate.yaml").write_text(text.replace("hidden_size: 512", "hidden_size: 500"))
    with pytest.raises(SuiteError, match=r"calibrate.yaml: cpu.2.model: .*multiples of 256"):
        load_calibration(tmp_path)
    (tmp_path / "calibrate.yaml").write_text(text.replace("wait_seconds: 60", "wait_seconds: 5"))
    assert load_calibration(tmp_path).suite.idle.wait_seconds == 5
