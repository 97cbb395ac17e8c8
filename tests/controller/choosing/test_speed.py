"""Predictions of speed: what the notes found, what physics forbids, and what a prediction says about itself."""

import itertools
from collections.abc import Iterable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_controller.choosing.devices import device_named, device_of
from fleet_controller.choosing.reference import reference_speeds
from fleet_controller.choosing.speed import Prediction, SpeedModel
from fleet_controller.choosing.work import (
    Cell,
    DeviceFacts,
    EngineFacts,
    MeasuredSpeed,
    ModelWork,
    Phase,
    work_of,
)
from fleet_inventory.catalog import load_catalog
from fleet_inventory.chips import ChipKind, load_chips
from fleet_inventory.speed_reference import load_speed_figures, load_speed_models

CUDA = EngineFacts(backend="llama.cpp", runtime="cuda", version="b9193")
METAL = EngineFacts(backend="llama.cpp", runtime="metal", version="b8396")
MLX = EngineFacts(backend="mlx-lm", runtime="metal", version="0.31.1")
NOTES_CUDA = CUDA.model_copy(update={"version": "b8396", "flash_attention": False})
ENGINES = {ChipKind.METAL: METAL, ChipKind.ROCM: CUDA.model_copy(update={"runtime": "rocm"})}
UNSEEN_DEVICES = [
    "RTX 5090",
    "Apple M4 Max (40-core GPU)",
    "NVIDIA H200",
    "NVIDIA H100 80GB HBM3",
    "Radeon RX 7900 XTX",
]
UNSEEN_MODELS = {"qwen3-8b": 5.03e9, "qwen3-32b": 19.8e9, "llama-3-70b": 42.5e9, "qwen3-30b-a3b": 18.6e9}


@cache
def rows() -> tuple[MeasuredSpeed, ...]:
    return reference_speeds(load_speed_figures(), load_speed_models())


@cache
def fitted(without: str = "") -> SpeedModel:
    """The model fitted to all reference rows but those of one architecture."""
    return SpeedModel(row for row in rows() if row.cell.model.name != without)


def device(name: str) -> DeviceFacts:
    found = device_named(name)
    assert found is not None
    return found


def cell(
    model: str,
    device_name: str,
    engine: EngineFacts,
    weights_bytes: float,
    depth: int = 0,
    phase: Phase = Phase.DECODE,
    quantization: str = "Q4_K_M",
) -> Cell:
    shape = load_speed_models()[model]
    return Cell(
        model=ModelWork.model_validate(shape.model_dump()),
        device=device(device_name),
        engine=engine,
        quantization=quantization,
        weights_bytes=weights_bytes,
        phase=phase,
        tokens=64 if phase is Phase.DECODE else 1024,
        depth=depth,
    )


def notes(model: str, chip: str, quantization: str, phase: Phase = Phase.DECODE) -> list[MeasuredSpeed]:
    """Rows of one model on one chip of the notes, by depth; those that llama-bench or mlx_lm.benchmark measured."""
    found = [
        row
        for row in rows()
        if (row.cell.model.name, row.cell.device.name, row.cell.quantization) == (model, chip, quantization)
        and row.cell.phase is phase
        and not row.cell.engine.over_http
    ]
    return sorted(found, key=lambda row: row.cell.depth)


def test_the_mixture_of_experts_beats_the_dense_model_on_the_4090_with_either_withheld() -> None:
    experts = notes("qwen3.5-35b-a3b", "RTX 4090", "UD-Q4_K_XL")[0].cell
    dense = notes("qwen3.5-27b", "RTX 4090", "UD-Q4_K_XL")[0].cell
    assert dense.weights_bytes < experts.weights_bytes
    for withheld in ("qwen3.5-35b-a3b", "qwen3.5-27b"):
        model = fitted(withheld)
        assert model.predict(experts).low > model.predict(dense).high


def test_mlx_beats_llama_cpp_for_the_4b_on_the_m4_without_any_row_of_it() -> None:
    model = fitted("qwen3.5-4b")
    mlx = notes("qwen3.5-4b", "Apple M4", "MLX-4bit")[0].cell
    llama = notes("qwen3.5-4b", "Apple M4", "UD-Q4_K_XL")[0].cell
    assert mlx.engine.key == "mlx-lm/metal"
    # Nearly all of it is the smaller file: no row of MLX-LM is left.
    assert model.predict(mlx).tokens_per_second > model.predict(llama).tokens_per_second


def test_what_was_measured_moves_a_prediction_towards_it() -> None:
    row = notes("qwen3.5-4b", "Apple M4", "MLX-4bit")[0]
    before, after = (fitted(name).predict(row.cell) for name in ("qwen3.5-4b", ""))
    assert abs(after.tokens_per_second - row.tokens_per_second) < abs(before.tokens_per_second - row.tokens_per_second)
    assert after.high / after.low < before.high / before.low


@pytest.mark.parametrize("quantization", ["UD-Q2_K_XL", "UD-Q4_K_XL"])
def test_the_decay_of_glm_with_depth_is_predicted_without_any_of_its_rows(quantization: str) -> None:
    """The notes' surprise: 137 t/s without context, 19 at 32768 tokens. By 7.0 to 7.2; predicted by 5 to 6."""
    model = fitted("glm-4.7-flash")
    measured = notes("glm-4.7-flash", "RTX 4090", quantization)
    predicted = [model.predict(row.cell) for row in measured]
    assert [row.cell.depth for row in measured] == [0, 8192, 16384, 32768]
    factor = measured[0].tokens_per_second / measured[-1].tokens_per_second
    assert predicted[0].tokens_per_second / predicted[-1].tokens_per_second == pytest.approx(factor, rel=0.3)
    for row, prediction in zip(measured[1:], predicted[1:], strict=True):
        assert prediction.tokens_per_second == pytest.approx(row.tokens_per_second, rel=0.15)
        assert prediction.low < row.tokens_per_second < prediction.high


def test_the_hybrid_models_decay_little_where_glm_decays_much() -> None:
    def decay(model: str, quantization: str) -> float:
        found = [fitted(model).predict(row.cell) for row in notes(model, "RTX 4090", quantization)]
        return found[0].tokens_per_second / found[-1].tokens_per_second

    assert decay("qwen3.5-35b-a3b", "UD-Q4_K_XL") < 1.5
    assert decay("glm-4.7-flash", "UD-Q4_K_XL") > 4


def test_glm_is_slow_at_depth_because_of_copies_that_flash_attention_saves() -> None:
    without = cell("glm-4.7-flash", "RTX 4090", NOTES_CUDA, 17.5e9, depth=32768)
    shares = dict(fitted("glm-4.7-flash").predict(without).shares)
    assert max(shares, key=shares.__getitem__) == "copies of the latent cache"
    with_it = without.model_copy(update={"engine": CUDA})
    assert "copies of the latent cache" not in dict(fitted().predict(with_it).shares)


@pytest.mark.parametrize(("name", "model"), list(itertools.product(UNSEEN_DEVICES, UNSEEN_MODELS)))
def test_devices_and_models_that_no_row_has_come_out_within_physics(name: str, model: str) -> None:
    facts = device(name)
    engine = ENGINES.get(facts.kind, CUDA)
    asked = cell(model, name, engine, UNSEEN_MODELS[model])
    decode = fitted().predict(asked)
    limit = facts.bandwidth / asked.read_bytes
    # A mixture of experts reads so little that its layers' fixed cost is most of the time.
    least = 0.03 if asked.model.mixture_of_experts else 0.15
    assert least * limit < decode.tokens_per_second < limit
    prefill = fitted().predict(asked.model_copy(update={"phase": Phase.PREFILL, "tokens": 1024}))
    assert facts.matrix_operations is not None
    limit = facts.matrix_operations / (2 * (asked.model.parameters_read - asked.model.head_parameters))
    assert least / 3 * limit < prefill.tokens_per_second < limit
    for prediction in (decode, prefill):
        assert prediction.low < prediction.tokens_per_second < prediction.high
        assert sum(share for _, share in prediction.shares) == pytest.approx(1)


def speeds(cells: Iterable[Cell]) -> list[float]:
    return [fitted().predict(one).tokens_per_second for one in cells]


CELLS = st.builds(
    cell,
    model=st.sampled_from(sorted(load_speed_models())),
    device_name=st.sampled_from(["RTX 4090", "RTX 5090", "Apple M4", "AMD Radeon 8060S", "NVIDIA H200"]),
    engine=st.sampled_from([CUDA, NOTES_CUDA, METAL, MLX, EngineFacts(backend="vllm", runtime="cuda", over_http=True)]),
    weights_bytes=st.floats(1e9, 1e11),
    depth=st.integers(0, 200_000),
    phase=st.sampled_from(Phase),
    quantization=st.sampled_from(["Q4_K_M", "UD-Q2_K_XL", "BF16", "a new one"]),
)
MORE = st.floats(1.0, 4.0)
ROUNDING = 1 + 1e-9


@settings(max_examples=60, deadline=None)
@given(CELLS, MORE)
def test_more_bandwidth_and_more_arithmetic_are_never_slower(asked: Cell, more: float) -> None:
    facts = asked.device
    wider = facts.model_copy(update={"bandwidth": facts.bandwidth * more})
    stronger = facts.model_copy(
        update={
            "matrix_operations": (facts.matrix_operations or 0) * more,
            "vector_operations": (facts.vector_operations or facts.matrix_operations or 0) * more,
        }
    )
    before, *after = speeds(asked.model_copy(update={"device": one}) for one in (facts, wider, stronger))
    assert all(speed * ROUNDING >= before for speed in after)


@settings(max_examples=60, deadline=None)
@given(CELLS, st.integers(0, 100_000))
def test_deeper_is_never_faster(asked: Cell, deeper: int) -> None:
    shallow, deep = speeds([asked, asked.model_copy(update={"depth": asked.depth + deeper})])
    assert deep <= shallow * ROUNDING


@settings(max_examples=60, deadline=None)
@given(CELLS, MORE)
def test_a_smaller_file_of_one_quantization_is_never_slower(asked: Cell, more: float) -> None:
    # From 16 bits on weights need no unpacking: below and above are two families.
    small = min(asked.weights_bytes, 1.8 * asked.model.parameters) / more
    large = small * more
    smaller, larger = speeds(asked.model_copy(update={"weights_bytes": size}) for size in (small, large))
    assert smaller * ROUNDING >= larger


@settings(max_examples=60, deadline=None)
@given(CELLS, MORE)
def test_a_larger_model_is_never_faster(asked: Cell, more: float) -> None:
    grown = asked.model.model_copy(
        update={
            "parameters": asked.model.parameters * more,
            "parameters_read": asked.model.parameters_read * more,
            "head_parameters": asked.model.head_parameters * more,
            "layers": round(asked.model.layers * more),
            "attention_layers": round(asked.model.attention_layers * more),
            "kv_bytes_per_token": asked.model.kv_bytes_per_token * more,
        }
    )
    larger = asked.model_copy(update={"model": grown, "weights_bytes": asked.weights_bytes * more})
    small, large = speeds([asked, larger])
    assert large <= small * ROUNDING


def test_the_order_of_rows_changes_nothing() -> None:
    asked = cell("qwen3-8b", "RTX 4090", CUDA, 5e9)
    assert SpeedModel(reversed(rows())).predict(asked) == fitted().predict(asked)


def test_without_any_row_chip_facts_and_priors_speak_and_say_so() -> None:
    prediction = SpeedModel([]).predict(cell("qwen3-8b", "RTX 4090", CUDA, 5.03e9))
    assert prediction.tokens_per_second == pytest.approx(120, rel=0.25)
    kinds = {basis.kind for basis in prediction.rests_on}
    assert kinds == {"fact", "prior"}
    assert all(basis.source for basis in prediction.rests_on)
    assert prediction.high / prediction.low > fitted_width()


def fitted_width() -> float:
    prediction = fitted().predict(cell("qwen3-8b", "RTX 4090", CUDA, 5.03e9))
    return prediction.high / prediction.low


def test_a_prediction_names_the_rows_that_it_rests_on_the_nearest_first() -> None:
    row = notes("qwen3.5-9b", "RTX 4090", "Q8_0")[0]
    bases = texts(fitted().predict(row.cell))
    assert bases[:4] == [
        "4 rows of this model on this device and engine",
        "36 rows of other models on this device and engine",
        "60 rows of this engine on other devices",
        "104 rows of other engines",
    ]
    assert "RTX 4090: 1008 GB/s, 330.3 TFLOPS" in bases


def texts(prediction: Prediction) -> list[str]:
    return [basis.text for basis in prediction.rests_on]


def test_a_speed_of_zero_is_refused() -> None:
    broken = rows()[0].model_copy(update={"tokens_per_second": 0.0})
    with pytest.raises(ValueError, match="above zero"):
        SpeedModel([broken])


def test_every_chip_of_the_inventory_gives_a_prediction() -> None:
    asked = cell("qwen3-8b", "RTX 4090", CUDA, 5.03e9)
    for chip in load_chips():
        facts = device_of(chip)
        for phase in Phase:
            prediction = fitted().predict(asked.model_copy(update={"device": facts, "phase": phase}))
            assert prediction.low > 0, chip.name


def test_a_chip_without_known_arithmetic_has_a_wider_interval() -> None:
    asked = cell("qwen3-8b", "RTX 5090", CUDA, 5.03e9, phase=Phase.PREFILL)
    blind = asked.model_copy(update={"device": asked.device.model_copy(update={"matrix_operations": None})})
    known, guessed = fitted().predict(asked), fitted().predict(blind)
    assert guessed.high / guessed.low > known.high / known.low


@pytest.mark.parametrize("name", ["qwen3.5-4b", "qwen3.5-9b", "qwen3.5-27b", "qwen3.5-35b-a3b", "glm-4.7-flash"])
def test_the_catalog_and_the_reference_models_are_one_size(name: str) -> None:
    architecture = load_catalog().resolve(name)[0].architecture
    mine, theirs = work_of(name, architecture), ModelWork.model_validate(load_speed_models()[name].model_dump())
    assert mine.name == theirs.name
    for field in ModelWork.model_fields.keys() - {"name"}:
        assert getattr(mine, field) == pytest.approx(getattr(theirs, field), rel=1e-3), field


def test_rows_that_are_unsure_move_a_prediction_less_and_leave_it_wider() -> None:
    """Of a device of which nothing else is known; the rows say a tenth of what was guessed."""
    guess = device("RTX 5090").model_copy(update={"name": "a card of ours"})
    asked = cell("qwen3-8b", "RTX 5090", CUDA, 5.03e9).model_copy(update={"device": guess})
    expected = fitted().predict(asked).tokens_per_second
    steady, noisy = (
        SpeedModel(
            [
                *rows(),
                MeasuredSpeed(cell=asked, tokens_per_second=expected / 2, source="a run", deviation=deviation),
            ]
        ).predict(asked)
        for deviation in (0.0, 1.0)
    )
    assert steady.tokens_per_second < noisy.tokens_per_second < expected
    assert noisy.high / noisy.low > steady.high / steady.low
