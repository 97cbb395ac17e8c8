"""Scores with their intervals, and what tells two of them apart."""

import random

import pytest

from fleet_controller.evaluating.report import comparisons
from fleet_controller.evaluating.scores import paired_difference, questions_to_show, score_of, wilson
from fleet_controller.results.quality import QualityRow


def test_wilsons_interval() -> None:
    """By hand: none of 10 gives 0 to z² / (10 + z²)."""
    assert wilson(0.9, 10) == pytest.approx((0.596, 0.982), abs=5e-4)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.278), abs=5e-4)
    assert wilson(1.0, 10) == pytest.approx((0.722, 1.0), abs=5e-4)


def test_where_all_is_asked_the_score_is_the_share_of_right_answers() -> None:
    score = score_of({"math": (4, 10), "law": (0, 10), "chess": (6, 10)}, {"math": 10, "law": 10, "chess": 10})
    assert score.score == pytest.approx(10 / 30) and score.n == 30
    assert score.low < 10 / 30 < score.high
    assert [(one.subject, one.correct, one.n) for one in score.subjects] == [
        ("chess", 6, 10), ("law", 0, 10), ("math", 4, 10)
    ]  # fmt: skip


def test_subjects_weigh_what_they_weigh_in_the_data_set() -> None:
    score = score_of({"large": (10, 10), "small": (0, 10)}, {"large": 900, "small": 100})
    assert score.score == pytest.approx(0.9)
    assert score.low > 0.6 and score.high < 1.0


@pytest.mark.parametrize("right", [0, 10])
def test_all_right_or_all_wrong_is_not_certain(right: int) -> None:
    score = score_of({"a": (right, 10), "b": (right, 10)}, {"a": 50, "b": 50})
    assert score.high - score.low > 0.1


@pytest.mark.parametrize("shares", [(0.2, 0.5, 0.9), (0.95, 0.99, 0.9), (0.5, 0.5, 0.5)])
def test_the_interval_holds_the_truth_as_often_as_it_says(shares: tuple[float, ...]) -> None:
    sizes = {"a": 900, "b": 400, "c": 200}
    truth = sum(share * size for share, size in zip(shares, sizes.values(), strict=True)) / 1500
    chance, held = random.Random(7), 0
    for _ in range(1000):
        seen = {
            name: (sum(chance.random() < share for _ in range(20)), 20)
            for name, share in zip(sizes, shares, strict=True)
        }
        score = score_of(seen, sizes)
        held += score.low <= truth <= score.high
    assert 0.93 <= held / 1000 <= 0.995


def test_the_same_questions_tell_more_than_two_scores_do() -> None:
    first = {str(number): number % 5 != 0 for number in range(500)}
    second = first | {str(number): False for number in range(1, 500, 25)}
    found = paired_difference(first, second)
    assert found is not None and found.n == 500
    assert found.difference == pytest.approx(-0.04) and found.shown and found.high < 0
    assert found.questions < questions_to_show(0.04, 0.8) / 4


def test_no_difference_seen_is_not_taken_for_none() -> None:
    same = {str(number): True for number in range(50)}
    found = paired_difference(same, same)
    assert found is not None and not found.shown
    assert found.low < 0 < found.high and found.questions == 0
    assert paired_difference(same, {"other": True}) is None


def test_the_interval_of_a_paired_difference_holds_the_truth_as_often_as_it_says() -> None:
    chance, held = random.Random(3), 0
    for _ in range(1000):
        first = {str(number): chance.random() < 0.6 for number in range(150)}
        second = {name: right if chance.random() < 0.8 else chance.random() < 0.5 for name, right in first.items()}
        found = paired_difference(first, second)
        assert found is not None
        held += found.low <= 0.2 * (0.5 - 0.6) <= found.high
    assert 0.93 <= held / 1000 <= 0.98


def row(quantization: str, right: str, **said: str) -> QualityRow:
    answers = {str(number): {"right": int(sign)} for number, sign in enumerate(right)}
    return QualityRow(
        run_id=quantization, host="a", model="tiny", quantization=quantization, artifact_hash=quantization,
        metric="mmlu_pro", protocol=said.get("protocol", "tiger"), protocol_version="1", score=0.5, low=0.4, high=0.6,
        n=len(right), raw={"answers": answers},
    )  # fmt: skip


def test_a_score_is_set_beside_those_of_its_scale_only() -> None:
    mine = row("Q2_K", "0" * 20 + "1" * 20)
    better, alike, stranger = (
        row("Q8_0", "1" * 40),
        row("Q4_K_M", "1" + "0" * 19 + "1" * 20),
        row("F16", "1" * 40, protocol="lm-eval"),
    )
    found = {one["against"]: one for one in comparisons(mine, [mine, better, alike, stranger])}
    assert set(found) == {"Q8_0", "Q4_K_M"}
    assert found["Q8_0"]["text"].startswith("Q2_K against Q8_0, 40 questions: -50.0 points (")
    assert found["Q8_0"]["text"].endswith(": told apart")
    assert "not told apart; about" in found["Q4_K_M"]["text"] and "more questions would" in found["Q4_K_M"]["text"]
