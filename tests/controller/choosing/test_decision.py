"""Decisions: the order, ties, floors, what is ruled out, and a golden set of explanations.

A golden file is corrected by hand, or deleted and written anew by a run with FLEET_WRITE_GOLDEN=1, so that a change of
the core shows what it changes.
"""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_controller.choosing.decision import Decision, WhyNot, decide
from fleet_controller.choosing.explain import explain
from fleet_controller.choosing.options import (
    Certainty,
    Figure,
    Goal,
    Option,
    Quality,
    measured_figure,
    predicted_figure,
)
from fleet_controller.choosing.reference import reference_speeds
from fleet_controller.choosing.speed import SpeedModel
from fleet_controller.choosing.ties import ties_of
from fleet_controller.choosing.work import Cell, Phase
from fleet_controller.domain.plan import FitVerdict
from fleet_controller.results.columns import Metric, Result
from fleet_controller.results.reference_files import load_reference
from fleet_inventory.reference_data import reference_files
from fleet_inventory.speed_reference import load_speed_figures, load_speed_models

GOLDEN = Path(__file__).parent / "golden"
GIB = 1 << 30


def figure(value: float, half: float = 1.0, certainty: Certainty = Certainty.MEASURED) -> Figure:
    return Figure(value=value, low=value - half, high=value + half, certainty=certainty)


def option(quantization: str, decode: Figure | None, bits: float = 4.8, **more: object) -> Option:
    base = Option(backend="llama.cpp", quantization=quantization, bits_per_weight=bits, decode=decode)
    return base.model_copy(update={"fit": FitVerdict.FITS, "margin_bytes": 2 * GIB, **more})


def order(decision: Decision) -> list[str]:
    return [ranked.option.quantization for ranked in decision.ranked]


def test_the_faster_wins_where_error_bars_are_apart() -> None:
    decision = decide([option("Q8_0", figure(80), 8.5), option("Q4_K_M", figure(120), 4.8)])
    assert order(decision) == ["Q4_K_M", "Q8_0"]
    assert "50 % ahead of llama.cpp Q8_0" in decision.ranked[0].reasons
    assert "33 % behind llama.cpp Q4_K_M" in decision.ranked[1].reasons


def test_overlapping_bars_are_a_tie_that_more_bits_win() -> None:
    decision = decide([option("Q8_0", figure(119, 2), 8.5), option("Q4_K_M", figure(120, 2), 4.8)])
    assert order(decision) == ["Q8_0", "Q4_K_M"]
    assert decision.ranked[0].reasons[2] == "a tie with llama.cpp Q4_K_M, taken for its 8.5 bits a weight"
    assert decision.ranked[1].ties_with_first


def test_in_a_tie_measured_quality_goes_before_bits_and_a_measurement_before_both() -> None:
    better = Quality(name="MMLU-Pro", score=0.7, low=0.68, high=0.72)
    worse = Quality(name="MMLU-Pro", score=0.6, low=0.58, high=0.62)
    small = option("Q4_K_M", figure(100, 5), 4.8, quality=better)
    large = option("Q8_0", figure(101, 5), 8.5, quality=worse)
    assert order(decide([small, large])) == ["Q4_K_M", "Q8_0"]
    guessed = small.model_copy(update={"decode": figure(100, 5, Certainty.PREDICTED)})
    assert order(decide([guessed, large])) == ["Q8_0", "Q4_K_M"]


def test_a_refusal_is_named_and_so_is_what_more_memory_would_do() -> None:
    refused = option(
        "BF16", figure(200), 16, fit=FitVerdict.REFUSED, fit_text="needs 18.0 GiB, 11.0 GiB are free", margin_bytes=None
    )
    decision = decide([refused, option("Q4_K_M", figure(120))])
    assert [(item.why, item.text) for item in decision.ruled_out] == [(WhyNot.MEMORY, refused.fit_text)]
    assert decision.would_change == ("more memory for llama.cpp BF16: needs 18.0 GiB, 11.0 GiB are free",)


def test_a_fast_bad_quantization_does_not_win_against_the_floor() -> None:
    def scored(score: float) -> Quality:
        return Quality(name="MMLU-Pro", score=score, low=score - 0.02, high=score + 0.02)

    bad = option("UD-Q2_K_XL", figure(200), 3.2, quality=scored(0.4))
    good = option("Q4_K_M", figure(120), 4.8, quality=scored(0.6))
    unknown = option("Q3_K_M", figure(150), 3.9)
    decision = decide([bad, good, unknown], quality_floor=0.55)
    assert order(decision) == ["Q4_K_M"]
    assert {item.option.quantization: item.why for item in decision.ruled_out} == {
        "UD-Q2_K_XL": WhyNot.QUALITY,
        "Q3_K_M": WhyNot.QUALITY,
    }
    assert order(decide([bad, good], quality_floor=None)) == ["UD-Q2_K_XL", "Q4_K_M"]
    # A score whose interval reaches the floor is not shown to be below it.
    assert order(decide([bad, good], quality_floor=0.61)) == ["Q4_K_M"]


def test_what_measuring_could_change_is_proposed_and_what_it_cannot_is_not() -> None:
    sure = option("Q4_K_M", figure(100))
    close = option("Q5_K_M", figure(90, 20, Certainty.PREDICTED), 5.7)
    hopeless = option("BF16", figure(30, 5, Certainty.PREDICTED), 16)
    assert decide([sure, close, hopeless]).would_change == (
        "measuring llama.cpp Q5_K_M: 70 to 110 t/s is a prediction",
    )
    assert decide([sure, hopeless]).would_change == ()


def test_the_pareto_set_is_what_nothing_beats_in_speed_and_quality() -> None:
    options = [
        option("Q2", figure(200), 3.0),
        option("Q4", figure(150), 4.8),
        option("slow Q4", figure(100), 4.8),
        option("Q8", figure(80), 8.5),
    ]
    decision = decide(options)
    assert decision.pareto == ("llama.cpp Q2", "llama.cpp Q4", "llama.cpp Q8")
    assert decision.pareto_by == "bits a weight"


def test_goals_have_figures_of_their_own() -> None:
    quick = option("Q4_K_M", figure(50), prefill=figure(5000, 10), joules_per_token=figure(2.0, 0.1))
    steady = option("Q8_0", figure(60), 8.5, prefill=figure(200, 10), joules_per_token=figure(3.0, 0.1))
    assert order(decide([quick, steady], Goal.DECODE)) == ["Q8_0", "Q4_K_M"]
    assert order(decide([quick, steady], Goal.PREFILL)) == ["Q4_K_M", "Q8_0"]
    assert order(decide([quick, steady], Goal.LATENCY)) == ["Q4_K_M", "Q8_0"]
    energy = decide([quick, steady], Goal.ENERGY)
    assert order(energy) == ["Q4_K_M", "Q8_0"]
    assert energy.ranked[0].standing.unit == "tokens/J"
    nothing = decide([quick, steady], Goal.THROUGHPUT)
    assert nothing.chosen is None
    assert {item.why for item in nothing.ruled_out} == {WhyNot.NO_FIGURE}


def test_two_options_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two options are called llama\.cpp Q4_K_M"):
        decide([option("Q4_K_M", figure(1)), option("Q4_K_M", figure(2))])


OPTIONS = st.lists(
    st.builds(
        option,
        quantization=st.text("abcdef", min_size=1, max_size=4),
        decode=st.builds(figure, st.floats(20, 200), st.floats(0.1, 20), st.sampled_from(Certainty)),
        bits=st.sampled_from([3.2, 4.8, 8.5]),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda one: one.name,
)


@settings(deadline=None)
@given(OPTIONS, st.randoms())
def test_the_order_of_options_changes_nothing_and_none_is_lost(options: list[Option], draw: Random) -> None:
    shuffled = list(options)
    draw.shuffle(shuffled)
    decision = decide(options)
    assert decide(shuffled) == decision
    assert sorted(order(decision)) == sorted(one.quantization for one in options)
    fastest = max(options, key=lambda one: one.decode.value if one.decode else 0.0)
    chosen = decision.ranked[0].option
    assert chosen.decode is not None and fastest.decode is not None
    assert chosen.decode.high >= fastest.decode.low


def test_predictions_of_one_machine_are_compared_as_a_ratio() -> None:
    """Their intervals overlap, and yet it is sure that half the bytes are faster."""
    model, cell = _withheld("qwen3.5-9b"), _cell("qwen3.5-9b", "RTX 4090", "Q8_0")
    cells = {"llama.cpp Q8_0": cell, "llama.cpp Q4_K_M": cell.model_copy(update={"weights_bytes": 5.7e9})}
    cells["llama.cpp Q4_K_M"] = cells["llama.cpp Q4_K_M"].model_copy(update={"quantization": "Q4_K_M"})
    options = [
        option(name.removeprefix("llama.cpp "), predicted_figure(model.predict(one)), bits)
        for (name, one), bits in zip(cells.items(), (8.5, 4.8), strict=True)
    ]
    decision = decide(options, tie=ties_of(model, cells, Goal.DECODE))
    assert order(decision) == ["Q4_K_M", "Q8_0"]
    assert not decision.ranked[1].ties_with_first


@cache
def _withheld(name: str) -> SpeedModel:
    rows = reference_speeds(load_speed_figures(), load_speed_models())
    return SpeedModel(row for row in rows if row.cell.model.name != name)


def _cell(model: str, device: str, quantization: str) -> Cell:
    rows = reference_speeds(load_speed_figures(), load_speed_models())
    return next(
        row.cell
        for row in rows
        if (row.cell.model.name, row.cell.device.name, row.cell.quantization) == (model, device, quantization)
        and row.cell.phase is Phase.DECODE
    )


@cache
def _notes() -> tuple[Result, ...]:
    return tuple(load_reference(reference_files())[0])


def _measured(chip: str, model: str, backend: str, quantization: str, **changes: object) -> Option:
    """An option with the notes' decode figure, asked for as llama-bench measures it without context."""
    own = [row for row in _notes() if (row.chip, row.model, row.backend) == (chip, model, backend)]
    row = next(row for row in own if row.quantization == quantization and row.test_kind is Metric.DECODE)
    wanted = row.model_copy(update={"client": "llama-bench", "depth": 0, **changes})
    return Option(
        backend=backend,
        quantization=quantization,
        bits_per_weight={"Q8_0": 8.5, "BF16": 16.0, "4bit": 4.5, "UD-Q3_K_XL": 3.8, "MXFP4_MOE": 5.0}.get(
            quantization, 5.1
        ),
        fit=FitVerdict.FITS,
        margin_bytes=3 * GIB,
        decode=measured_figure(wanted, own),
    )


def _m4_4b() -> Decision:
    chip, model = "Apple M4", "qwen3.5-4b"
    return decide([_measured(chip, model, "llama.cpp", "UD-Q4_K_XL"), _measured(chip, model, "mlx-lm", "4bit")])


def _rtx_4090_35b() -> Decision:
    chip, model = "NVIDIA GeForce RTX 4090", "qwen3.5-35b-a3b"
    return decide([_measured(chip, model, "llama.cpp", name) for name in ("UD-Q3_K_XL", "UD-Q4_K_XL", "MXFP4_MOE")])


def _rtx_4090_4b() -> Decision:
    chip, model = "NVIDIA GeForce RTX 4090", "qwen3.5-4b"
    names = (("llama.cpp", "Q8_0"), ("sglang", "BF16"), ("vllm", "BF16"))
    return decide([_measured(chip, model, backend, name) for backend, name in names])


def _rtx_4090_glm_withheld() -> Decision:
    model = _withheld("glm-4.7-flash")
    cells = {f"llama.cpp {name}": _cell("glm-4.7-flash", "RTX 4090", name) for name in ("UD-Q2_K_XL", "UD-Q4_K_XL")}
    options = [
        option(name.removeprefix("llama.cpp "), predicted_figure(model.predict(cell)), bits, context_tokens=32768)
        for (name, cell), bits in zip(cells.items(), (3.2, 4.7), strict=True)
    ]
    refused = option(
        "BF16", None, 16, fit=FitVerdict.REFUSED, fit_text="needs 58.4 GiB, 23.5 GiB are free", margin_bytes=None
    )
    return decide([*options, refused], tie=ties_of(model, cells, Goal.DECODE))


CASES: dict[str, Callable[[], Decision]] = {
    "apple-m4-qwen3.5-4b": _m4_4b,
    "rtx-4090-qwen3.5-35b-a3b": _rtx_4090_35b,
    "rtx-4090-qwen3.5-4b": _rtx_4090_4b,
    "rtx-4090-glm-4.7-flash-predicted": _rtx_4090_glm_withheld,
}


@pytest.mark.parametrize("name", CASES)
def test_golden_decisions(name: str) -> None:
    text = "\n".join(explain(CASES[name]())) + "\n"
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("FLEET_WRITE_GOLDEN") and not path.exists():
        path.write_text(text)
    assert text == path.read_text()


def test_mlx_beats_llama_cpp_on_the_m4_through_the_weaker_comparability() -> None:
    decision = _m4_4b()
    assert decision.ranked[0].option.backend == "mlx-lm"
    assert decision.ranked[0].standing.certainty is Certainty.NEAR
    assert decision.ranked[1].standing.certainty is Certainty.MEASURED
    assert not decision.ranked[1].ties_with_first
