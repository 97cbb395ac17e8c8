"""Which commands are proposed after a choice."""

import pytest

from fleet_controller.choosing.decision import Decision, decide
from fleet_controller.choosing.options import Certainty, Figure, Goal, Option
from fleet_controller.domain.plan import FitVerdict
from fleet_controller.operations.choosing_next import next_commands


def figure(value: float, off_by: float, certainty: Certainty = Certainty.PREDICTED) -> Figure:
    return Figure(value=value, low=value / off_by, high=value * off_by, certainty=certainty)


def option(quantization: str, speed: Figure | None, context: int = 4096, longest: int = 4096) -> Option:
    return Option(backend="llama.cpp", quantization=quantization, fit=FitVerdict.FITS, decode=speed, prefill=speed,
                  throughput=speed, context_tokens=context, longest_context=longest)  # fmt: skip


def proposed(decision: Decision, asked_context: int | None = None) -> list[str]:
    return list(next_commands("tiny", "gpu1", decision, asked_context))


def of_a_tie(goal: Goal) -> Decision:
    return decide([option("Q8_0", figure(100.0, 1.2)), option("Q4_K_M", figure(101.0, 1.2))], goal)


@pytest.mark.parametrize(
    ("goal", "measures"),
    [
        (Goal.DECODE, "--to-decide"),
        (Goal.LATENCY, "--to-decide --goal latency"),
        (Goal.THROUGHPUT, "--suite concurrency"),
    ],
)
def test_what_is_measured_is_what_was_asked_for(goal: Goal, measures: str) -> None:
    assert proposed(of_a_tie(goal))[0] == f"fleet bench tiny --hosts gpu1 {measures}"


@pytest.mark.parametrize(
    ("goal", "measures"), [(Goal.THROUGHPUT, "--suite concurrency"), (Goal.ENERGY, "--suite energy")]
)
def test_what_is_never_predicted_is_proposed_for_measuring_even_alone(goal: Goal, measures: str) -> None:
    """No calibration tells it, and of one option alone there is nothing to decide."""
    decision = decide([option("Q8_0", None)], goal)
    assert decision.ranked[0].standing.text == f"no figure for {goal.value}: it is measured, never predicted"
    assert proposed(decision)[0] == f"fleet bench tiny --hosts gpu1 {measures}"
    unmeasurable = list(next_commands("tiny", "gpu1", decision, measurable=False))
    assert unmeasurable == ["fleet deploy tiny --hosts gpu1 --backend llama.cpp --quant Q8_0"]


def test_one_option_that_could_change_the_choice_is_enough_for_a_bench() -> None:
    known = option("Q8_0", figure(100.0, 1.01, Certainty.MEASURED))
    decision = decide([known, option("Q4_K_M", figure(99.0, 1.5))])
    assert decision.to_measure == ("llama.cpp Q4_K_M",)
    assert proposed(decision)[0] == "fleet bench tiny --hosts gpu1 --to-decide"


def test_of_a_path_no_quantization_is_named() -> None:
    known = decide([option("such", figure(100.0, 1.01, Certainty.MEASURED))])
    assert list(next_commands("/m/such.gguf", "gpu1", known)) == [
        "fleet deploy /m/such.gguf --hosts gpu1 --backend llama.cpp"
    ]


def test_a_calibration_is_proposed_where_a_prediction_is_doubtful() -> None:
    assert proposed(decide([option("Q8_0", figure(100.0, 3.0))]))[0] == "fleet calibrate --hosts gpu1"
    assert not any("calibrate" in one for one in proposed(decide([option("Q8_0", figure(100.0, 1.2))])))


def test_the_deploy_has_the_context_that_the_choice_was_made_for() -> None:
    known = figure(100.0, 1.01, Certainty.MEASURED)
    deploy = "fleet deploy tiny --hosts gpu1 --backend llama.cpp --quant Q8_0"
    assert proposed(decide([option("Q8_0", known)])) == [deploy]
    assert proposed(decide([option("Q8_0", known)]), 4096) == [f"{deploy} --context 4096"]
    assert proposed(decide([option("Q8_0", known, context=2048)])) == [f"{deploy} --context 2048"]
