"""Decisions: the order, ties, floors, and what is ruled out."""

from functools import cache
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_controller.choosing.decision import Decision, WhyNot, decide
from fleet_controller.choosing.explain import better_answers, explain, summary
from fleet_controller.choosing.options import (
    Certainty,
    Conditions,
    Figure,
    Goal,
    Option,
    Quality,
    predicted_figure,
)
from fleet_controller.choosing.reference import reference_speeds
from fleet_controller.choosing.speed import SpeedModel
from fleet_controller.choosing.ties import ties_of
from fleet_controller.choosing.work import Cell, Phase
from fleet_controller.domain.plan import FitVerdict
from fleet_inventory.speed_reference import load_speed_figures, load_speed_models

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


def test_what_more_bits_would_cost_is_said_with_the_option_that_takes_them() -> None:
    """On a CPU four bits are faster than eight, and win: who wants the eight is told how."""
    decision = decide([option("Q4_K_M", figure(60), 4.8), option("Q8_0", figure(40), 8.5)])
    text = "--quant Q8_0 has 8.5 bits a weight instead of 4.8, 33 % slower"
    assert better_answers(decision) == text and summary(decision).endswith(text)
    assert any("nobody scored their answers" in line and text in line for line in explain(decision))
    assert better_answers(decide([option("Q4_K_M", figure(60), 4.8), option("Q4_K_L", figure(40), 5.0)])) == ""
    assert better_answers(decide([option("Q8_0", figure(60), 8.5), option("Q4_K_M", figure(40), 4.8)])) == ""


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
    assert {ranked.standing.certainty for ranked in nothing.ranked} == {Certainty.UNKNOWN}
    assert nothing.ranked[0].comparison.endswith("in fleet's own order: no figure speaks for either")


def test_two_options_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two options are called llama\.cpp Q4_K_M"):
        decide([option("Q4_K_M", figure(1)), option("Q4_K_M", figure(2))])


OPTIONS = st.lists(
    st.builds(
        option,
        quantization=st.text("abcdef", min_size=1, max_size=4),
        decode=st.builds(figure, st.floats(20, 200), st.floats(0.1, 20), st.sampled_from(list(Certainty)[:-1])),
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


def test_what_has_no_figure_goes_behind_and_is_worth_measuring() -> None:
    known, unknown = option("Q4_K_M", figure(50)), option("Q8_0", None, 8.5)
    decision = decide([known, unknown])
    assert order(decision) == ["Q4_K_M", "Q8_0"]
    assert decision.ranked[1].comparison == "behind llama.cpp Q4_K_M, of which a figure is known"
    assert decision.to_measure == ("llama.cpp Q8_0",)


def test_without_any_figure_fleets_own_order_counts() -> None:
    options = [option("Q4_K_M", None, place=2), option("Q8_0", None, 8.5, place=1)]
    assert order(decide(options)) == ["Q8_0", "Q4_K_M"]


def test_few_bits_that_nobody_scored_go_behind_although_they_are_faster() -> None:
    few = option("UD-Q2_K_XL", figure(200), 3.2, held_back="3.2 bits a weight")
    decision = decide([few, option("Q4_K_M", figure(120))])
    assert order(decision) == ["Q4_K_M", "UD-Q2_K_XL"]
    assert decision.ranked[1].comparison == "67 % ahead of llama.cpp Q4_K_M, and held back"
    assert decision.would_change == ("a score of llama.cpp UD-Q2_K_XL: `fleet eval` measures it",)
    assert order(decide([few])) == ["UD-Q2_K_XL"]


def test_what_fits_entirely_goes_before_what_would_be_faster_were_it_not_partly_on_the_cpu() -> None:
    partly = option(
        "Q8_0",
        figure(200),
        8.5,
        fit=FitVerdict.FITS_WITH_OFFLOAD,
        offload_bytes=4 * GIB,
        fully_fitting_context=8192,
        context_tokens=32768,
    )
    less = partly.model_copy(update={"quantization": "Q6_K", "offload_bytes": 2 * GIB})
    decision = decide([partly, less, option("Q4_K_M", figure(120))])
    assert order(decision) == ["Q4_K_M", "Q6_K", "Q8_0"]
    assert decision.would_change == ("--context 8192: llama.cpp Q6_K, llama.cpp Q8_0 would fit entirely",)
    assert decision.pareto == ("llama.cpp Q4_K_M",)
    # Without it the least on the CPU is first, whatever figures of whole models say.
    assert order(decide([partly, less.model_copy(update={"decode": figure(100)})])) == ["Q6_K", "Q8_0"]


def test_what_is_taken_on_request_only_never_wins_by_itself_and_says_what_it_would_give() -> None:
    asked = option("BF16", figure(300), 16, backend="vllm", on_request="vllm is not installed here")
    decision = decide([asked, option("Q4_K_M", figure(120))])
    assert [ranked.option.backend for ranked in decision.ranked] == ["llama.cpp", "vllm"]
    assert decision.would_change == ("--backend vllm: vllm BF16 is 150 % ahead, measured",)


def test_what_cannot_be_had_is_ruled_out_before_all_else() -> None:
    none = option("Q4_K_M", figure(120), excluded="cannot be installed here: no compiler")
    decision = decide([none])
    assert decision.chosen is None
    assert [(item.why, item.text) for item in decision.ruled_out] == [(WhyNot.UNUSABLE, none.excluded)]


def test_figures_of_one_host_client_and_test_are_compared_as_they_are_others_on_the_weaker_level() -> None:
    def near(value: float, client: str) -> Figure:
        conditions = Conditions(host="notes", client=client, test="tg64")
        return Figure(value=value, low=value * 0.8, high=value * 1.2, certainty=Certainty.NEAR, spread=1,
                      conditions=conditions)  # fmt: skip

    slow, fast = option("Q8_0", near(100, "llama-bench"), 8.5), option("Q4_K_M", near(115, "llama-bench"))
    assert order(decide([slow, fast])) == ["Q4_K_M", "Q8_0"]
    assert not decide([slow, fast]).ranked[1].ties_with_first
    elsewhere = fast.model_copy(update={"decode": near(115, "llama-benchy")})
    tied = decide([slow, elsewhere])
    assert order(tied) == ["Q8_0", "Q4_K_M"]
    assert "(≈: llama-bench beside llama-benchy)" in tied.ranked[0].comparison


def of_one_bench(value: float, half: float) -> Figure:
    """By the engine's own tool on this host, with a bar of its repetitions."""
    conditions = Conditions(host="here", client="llama-bench", test="tg64", backend="llama.cpp", version="b1")
    return figure(value, half).model_copy(update={"spread": half, "conditions": conditions})


def test_a_wide_bar_hides_no_difference_behind_a_tie() -> None:
    """What is 40 % slower was once taken as a tie for its bits, since the other's bar reached it."""
    noisy, steady = option("Q4_K_M", of_one_bench(100, 60)), option("Q8_0", of_one_bench(60, 1), 8.5)
    decision = decide([noisy, steady])
    assert order(decision) == ["Q4_K_M", "Q8_0"]
    assert not decision.ranked[1].ties_with_first
    assert decision.ranked[0].comparison == "67 % ahead of llama.cpp Q8_0, but too noisy to tell: measure again"
    assert decision.ranked[1].comparison == "40 % behind llama.cpp Q4_K_M, but too noisy to tell: measure again"
    assert decision.to_measure == ("llama.cpp Q4_K_M",)
    assert decision.would_change == ("measuring llama.cpp Q4_K_M again: 40 to 160 t/s is too wide to tell",)


def test_a_tie_on_equal_terms_is_within_five_percent() -> None:
    close, far = (option("Q8_0", of_one_bench(value, 4), 8.5) for value in (96, 94))
    fast = option("Q4_K_M", of_one_bench(100, 4))
    assert order(decide([fast, close])) == ["Q8_0", "Q4_K_M"]
    assert order(decide([fast, far])) == ["Q4_K_M", "Q8_0"]


def test_predictions_of_one_machine_are_compared_as_a_ratio() -> None:
    """Their intervals overlap, and yet it is sure that half the bytes are faster."""
    model, cell = _withheld("qwen3.5-9b"), _cell("qwen3.5-9b", "RTX 4090", "Q8_0")
    cells = {"llama.cpp Q8_0": cell, "llama.cpp Q4_K_M": cell.model_copy(update={"weights_bytes": 5.7e9})}
    cells["llama.cpp Q4_K_M"] = cells["llama.cpp Q4_K_M"].model_copy(update={"quantization": "Q4_K_M"})
    options = [
        option(name.removeprefix("llama.cpp "), predicted_figure(model.predict(one)), bits)
        for (name, one), bits in zip(cells.items(), (8.5, 4.8), strict=True)
    ]
    made_of = {name: {Phase.DECODE: one} for name, one in cells.items()}
    decision = decide(options, tie=ties_of(lambda: model, made_of, Goal.DECODE))
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
