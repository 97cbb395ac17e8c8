"""When two predictions are one: not clearly apart, and not expected to differ by much either."""

from fleet_controller.choosing.devices import device_named
from fleet_controller.choosing.options import Goal, Option, predicted_figure
from fleet_controller.choosing.speed import SpeedModel
from fleet_controller.choosing.ties import ties_of
from fleet_controller.choosing.work import Cell, EngineFacts, ModelWork, Phase
from fleet_inventory.speed_reference import load_speed_models

MODEL = SpeedModel([])


def cell(backend: str, quantization: str, weights_bytes: float) -> Cell:
    device = device_named("RTX 4090")
    assert device is not None
    return Cell(
        model=ModelWork.model_validate(load_speed_models()["qwen3-8b"].model_dump()),
        device=device,
        engine=EngineFacts(backend=backend, runtime="cuda", over_http=True),
        quantization=quantization,
        weights_bytes=weights_bytes,
        phase=Phase.DECODE,
        tokens=64,
    )


def tie(one: Cell, other: Cell) -> bool:
    options = [
        Option(
            backend=asked.engine.backend, quantization=asked.quantization, decode=predicted_figure(MODEL.predict(asked))
        )
        for asked in (one, other)
    ]
    cells = {option.name: asked for option, asked in zip(options, (one, other), strict=True)}
    return ties_of(lambda: MODEL, cells, Goal.DECODE)(*options)


def test_two_engines_of_which_nothing_is_known_are_a_tie() -> None:
    assert tie(cell("vllm", "BF16", 16.4e9), cell("sglang", "BF16", 16.4e9))


def test_not_knowing_does_not_make_a_tie_of_what_is_expected_to_be_slower() -> None:
    """The interval of their ratio reaches 1, since no row is there; a file twice the size is slower all the same."""
    small, large = cell("llama.cpp", "Q8_0", 8.7e9), cell("vllm", "BF16", 16.4e9)
    low, high = MODEL.faster_by(small, large)
    assert low < 1 < high
    assert not tie(small, large)
