"""Devices that nobody knows: a wide interval at first, and what rows of a calibration make of it.

The rows are made by the model itself for a machine whose memory is far from what its name suggests.
"""

from functools import cache

import pytest

from fleet_controller.benchmarking.calibration import calibration_work
from fleet_controller.choosing.devices import device_named
from fleet_controller.choosing.reference import reference_speeds
from fleet_controller.choosing.speed import SpeedModel
from fleet_controller.choosing.work import Cell, DeviceFacts, EngineFacts, MeasuredSpeed, ModelWork, Phase
from fleet_inventory.speed_reference import load_speed_figures, load_speed_models

# The name, what computes there, and how many times the memory and arithmetic that the name suggests it really has.
UNKNOWN = [("NVIDIA GeForce RTX 9990", "cuda", 2.2), ("Intel(R) Xeon(R) Processor", "cpu", 0.4)]
# Few wide layers and many narrow ones, as calibration has them; behind no context and behind 8192 tokens.
MADE_UP = ("calibration-4x4096-14336-32-8", "calibration-32x1024-3072-16-8")
DEPTHS = (0, 8192)
ASKED = ("qwen3-8b", "qwen3.5-27b", "qwen3-30b-a3b")


@cache
def rows() -> tuple[MeasuredSpeed, ...]:
    return reference_speeds(load_speed_figures(), load_speed_models())


def engine(runtime: str) -> EngineFacts:
    return EngineFacts(backend="llama.cpp", runtime=runtime, version="b11434")


def cell(model: ModelWork, device: DeviceFacts, runtime: str, phase: Phase, depth: int = 0) -> Cell:
    return Cell(
        model=model,
        device=device,
        engine=engine(runtime),
        quantization="Q4_K_M",
        weights_bytes=model.parameters * 0.6,
        phase=phase,
        tokens=64 if phase is Phase.DECODE else 512,
        depth=depth,
    )


def guess(name: str) -> DeviceFacts:
    found = device_named(name)
    assert found is not None
    return found


@cache
def fitted() -> SpeedModel:
    return SpeedModel(rows())


@pytest.mark.parametrize(("name", "runtime", "times"), UNKNOWN)
def test_rows_of_a_calibration_mend_the_predictions_of_a_device_that_nobody_knows(
    name: str, runtime: str, times: float
) -> None:
    guessed, known = guess(name), fitted()
    assert guessed.guessed
    true = guessed.model_copy(
        update={
            "bandwidth": guessed.bandwidth * times,
            "matrix_operations": guessed.matrix_operations and guessed.matrix_operations * times,
            "vector_operations": guessed.vector_operations and guessed.vector_operations * times,
        }
    )
    calibration = []
    for made_up in MADE_UP:
        shape = calibration_work(made_up)
        assert shape is not None
        for phase in Phase:
            for depth in DEPTHS:
                speed = known.predict(cell(shape, true, runtime, phase, depth)).tokens_per_second
                asked = cell(shape, guessed, runtime, phase, depth)
                calibration.append(MeasuredSpeed(cell=asked, tokens_per_second=speed, source="calibration"))
    calibrated = SpeedModel((*rows(), *calibration))
    for asked_model in ASKED:
        model = ModelWork.model_validate(load_speed_models()[asked_model].model_dump())
        for phase in Phase:
            truth = known.predict(cell(model, true, runtime, phase, 4096)).tokens_per_second
            before, after = (one.predict(cell(model, guessed, runtime, phase, 4096)) for one in (known, calibrated))
            error_before, error_after = (abs(one.tokens_per_second / truth - 1) for one in (before, after))
            assert error_after < error_before
            assert error_after < 0.3, f"{asked_model} {phase}: {error_before:.0%} before, {error_after:.0%} after"
            assert after.high / after.low < before.high / before.low


def test_a_guess_has_an_interval_that_says_so() -> None:
    model = ModelWork.model_validate(load_speed_models()["qwen3-8b"].model_dump())
    known = device_named("RTX 4080")
    assert known is not None
    predictions = [fitted().predict(cell(model, one, "cuda", Phase.DECODE)) for one in (known, guess("RTX 9990"))]
    told, guessed = (one.high / one.low for one in predictions)
    assert guessed > 2 * told
    assert guessed > 4
