"""When an upgraded engine counts as worse: from figures alone."""

import pytest

from fleet_controller.benchmarking.golden import Evidence, judge
from fleet_controller.results.columns import Metric, Result
from support.result_rows import decode


def evidence(prefill: tuple[float, ...], decode: tuple[float, ...], reply: str | None = "hello") -> Evidence:
    return Evidence(results=(of(Metric.PREFILL, prefill), of(Metric.DECODE, decode)), reply=reply)


def of(kind: Metric, samples: tuple[float, ...]) -> Result:
    tokens = {"prompt_tokens": 512, "generation_tokens": 0} if kind is Metric.PREFILL else {"generation_tokens": 64}
    mean = sum(samples) / len(samples)
    return decode(mean, None, test_kind=kind, samples=samples, repetitions=len(samples), **tokens)


BEFORE = evidence((1000.0, 1010.0, 990.0), (100.0, 101.0, 99.0))


def test_the_same_figures_are_as_good() -> None:
    judgement = judge("m", BEFORE, evidence((1001.0, 1009.0, 991.0), (101.0, 100.0, 99.0)), 0.05)
    assert judgement.refused == ""
    assert [figure.worse for figure in judgement.figures] == [False, False]


def test_a_fall_beyond_the_threshold_and_noise_is_worse_and_told_with_its_interval() -> None:
    judgement = judge("m", BEFORE, evidence((1000.0, 1010.0, 990.0), (80.0, 81.0, 79.0)), 0.05)
    assert judgement.refused.startswith("slower: tg64 100.0 -> 80.0 t/s (-20.0 %, 95 %: -22.")
    assert [figure.worse for figure in judgement.figures] == [False, True]


def test_a_fall_within_the_threshold_or_within_noise_is_not() -> None:
    assert judge("m", BEFORE, evidence((960.0, 961.0, 959.0), (100.0, 101.0, 99.0)), 0.05).refused == ""
    noisy = evidence((1000.0, 1010.0, 990.0), (60.0, 120.0, 90.0))
    assert judge("m", BEFORE, noisy, 0.05).refused == ""


def test_another_reply_is_worse_and_one_that_never_repeats_says_nothing() -> None:
    changed = BEFORE.model_copy(update={"reply": "good bye"})
    assert judge("m", BEFORE, changed, 0.05).refused == "another reply to the golden chat: 'hello' became 'good bye'"
    unsteady = BEFORE.model_copy(update={"reply": None})
    assert judge("m", unsteady, changed, 0.05).refused == ""


def test_a_test_that_is_missing_afterwards_is_no_judgement() -> None:
    with pytest.raises(ValueError, match="tg64 was measured before and not after"):
        judge("m", BEFORE, Evidence(results=BEFORE.results[:1], reply="hello"), 0.05)
