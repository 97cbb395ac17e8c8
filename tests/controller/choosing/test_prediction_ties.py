"""When two predictions are one: not clearly apart, and not expected to differ by much either."""

import pytest

from fleet_controller.choosing.bars import Relation
from fleet_controller.choosing.devices import device_named
from fleet_controller.choosing.options import Certainty, Figure, Goal, Option, predicted_figure
from fleet_controller.choosing.speed import SpeedModel
from fleet_controller.choosing.ties import Cells, faster_by, ties_of
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


def relation(one: Cell, other: Cell) -> Relation:
    options = [
        Option(
            backend=asked.engine.backend, quantization=asked.quantization, decode=predicted_figure(MODEL.predict(asked))
        )
        for asked in (one, other)
    ]
    cells = {option.name: {asked.phase: asked} for option, asked in zip(options, (one, other), strict=True)}
    return ties_of(lambda: MODEL, cells, Goal.DECODE)(*options)


def test_two_engines_of_which_nothing_is_known_are_a_tie() -> None:
    assert relation(cell("vllm", "BF16", 16.4e9), cell("sglang", "BF16", 16.4e9)) is Relation.TIE


def test_not_knowing_does_not_make_a_tie_of_what_is_expected_to_be_slower() -> None:
    """The interval of their ratio reaches 1, since no row is there; a file twice the size is slower all the same."""
    small, large = cell("llama.cpp", "Q8_0", 8.7e9), cell("vllm", "BF16", 16.4e9)
    low, high = MODEL.faster_by(small, large)
    assert low < 1 < high
    assert relation(small, large) is Relation.APART


def both_phases(quantization: str, weights_bytes: float) -> Cells:
    decode = cell("llama.cpp", quantization, weights_bytes)
    return {Phase.DECODE: decode, Phase.PREFILL: decode.model_copy(update={"phase": Phase.PREFILL, "tokens": 1024})}


def requested(quantization: str, cells: Cells) -> Option:
    decode, prefill = (predicted_figure(MODEL.predict(cells[phase])) for phase in (Phase.DECODE, Phase.PREFILL))
    return Option(backend="llama.cpp", quantization=quantization, decode=decode, prefill=prefill)


def test_whole_requests_are_told_apart_by_the_ratios_of_both_phases() -> None:
    """Where the bars of both are a factor of three wide, they overlap, and twice the bytes are slower all the same."""
    small, large = both_phases("Q8_0", 8.7e9), both_phases("BF16", 16.4e9)
    options = [requested("Q8_0", small), requested("BF16", large)]
    cells = {option.name: made_of for option, made_of in zip(options, (small, large), strict=True)}
    ratio = faster_by(MODEL, small, large, Goal.LATENCY)
    assert ratio is not None
    by_phase = [MODEL.faster_by(small[phase], large[phase]) for phase in Phase]
    for end in (0, 1):  # between those of its parts
        assert min(one[end] for one in by_phase) <= ratio[end] <= max(one[end] for one in by_phase)
    assert ties_of(lambda: MODEL, cells, Goal.LATENCY)(*options) is Relation.APART


@pytest.mark.parametrize("goal", [Goal.LATENCY, Goal.THROUGHPUT])
def test_what_is_not_all_predicted_is_compared_by_its_bars(goal: Goal) -> None:
    known = Figure(value=100.0, low=99.0, high=101.0, certainty=Certainty.MEASURED)
    made_of = both_phases("Q8_0", 8.7e9)
    one, other = (
        requested(name, made_of).model_copy(update={"decode": known, "throughput": known}) for name in ("Q8_0", "Q6_K")
    )
    assert ties_of(lambda: MODEL, {one.name: made_of, other.name: made_of}, goal)(one, other) is Relation.TIE
