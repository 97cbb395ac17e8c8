"""From right and wrong answers to a score with its interval, and how many questions tell two scores apart. Pure.

The score weighs subjects as the data set does, whatever share of each was asked: sum of W_h p_h, with W_h the part of
the data set that subject h is. Its interval is Wilson's at the effective sample size p (1 - p) / variance, where the
variance of a stratum is taken at (x + 1) / (n + 2), so that a subject that is all right or all wrong is not taken for
certain (C. Franco et al., J. Survey Statistics and Methodology 7 (2019) 334: Wilson's interval in stratified samples).
The questions count as a sample of what might be asked: also all of a data set's questions leave an interval.
"""

import math
from collections.abc import Mapping

from fleet_controller.domain.base import Frozen
from fleet_controller.results.quality import SubjectScore

# Normal quantiles: 95 % two-sided, and 80 % power.
Z, Z_POWER = 1.959964, 0.841621


class Score(Frozen):
    """A share and its 95 % interval."""

    score: float
    low: float
    high: float
    n: int
    subjects: tuple[SubjectScore, ...] = ()


class Difference(Frozen):
    """`difference` = second - first over the same questions, with its 95 % interval.

    `questions` is how many of them in all would show a difference of this size (80 % power); 0 = none to be shown.
    """

    difference: float
    low: float
    high: float
    n: int
    questions: int

    @property
    def shown(self) -> bool:
        return self.low > 0 or self.high < 0


def wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's interval of a share seen in `count` trials (any real number above 0)."""
    square = Z * Z
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = Z / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def score_of(answers: Mapping[str, tuple[int, int]], sizes: Mapping[str, int]) -> Score:
    """`answers` has (right, asked) of each subject, at least one asked of each; `sizes` weigh the subjects."""
    total = sum(sizes[name] for name in answers)
    subjects, share, variance, asked = [], 0.0, 0.0, 0
    for name in sorted(answers):
        right, count = answers[name]
        weight, smooth = sizes[name] / total, (right + 1) / (count + 2)
        share += weight * right / count
        variance += weight * weight * smooth * (1 - smooth) / count
        asked += count
        low, high = wilson(right / count, count)
        subjects.append(SubjectScore(subject=name, n=count, correct=right, low=low, high=high))
    smooth = (share * asked + 1) / (asked + 2)
    low, high = wilson(share, smooth * (1 - smooth) / variance)
    return Score(score=share, low=low, high=high, n=asked, subjects=tuple(subjects))


def questions_to_show(difference: float, share: float) -> int:
    """Questions of each of two models whose answers are independent, so that this difference shows (80 % power)."""
    return math.ceil(2 * share * (1 - share) * ((Z + Z_POWER) / difference) ** 2)


def paired_difference(first: Mapping[str, bool], second: Mapping[str, bool]) -> Difference | None:
    """Over the questions that both answered; None where there is none.

    Only questions that one has right and the other wrong say anything; one of each is added, so that no difference seen
    is not taken for none (A. Agresti and Y. Min, Statistics in Medicine 24 (2005) 729).
    """
    both = first.keys() & second.keys()
    if not both:
        return None
    n = len(both)
    gained = sum(second[name] and not first[name] for name in both)
    lost = sum(first[name] and not second[name] for name in both)
    added, total = 0.5, n + 2.0
    up, down = (gained + added) / total, (lost + added) / total
    half = Z * math.sqrt(max(up + down - (up - down) ** 2, 0.0) / total)
    difference = (gained - lost) / n
    needed = math.ceil((up + down) * ((Z + Z_POWER) / difference) ** 2) if difference else 0
    low, high = up - down - half, up - down + half
    return Difference(difference=difference, low=max(low, -1.0), high=min(high, 1.0), n=n, questions=needed)
