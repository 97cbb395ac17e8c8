"""The statistics of a comparison: Student's t, confidence intervals, Welch's test. Pure.

The samples of a bench are few (3 or 5), so the normal distribution would give intervals that are too narrow: at n = 3
the 95 % quantile is 4.30 and not 1.96. Student's t comes from the regularized incomplete beta function, evaluated by
its continued fraction (Numerical Recipes, 3rd edition, 6.4; DLMF 8.17.22).
"""

import math
import statistics
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

CONFIDENCE = 0.95
_ITERATIONS = 300
_PRECISION = 1e-15
_TINY = 1e-300
_BISECTIONS = 200


class Measured(Protocol):
    """What of a result says how certain its mean is."""

    @property
    def mean(self) -> float | None: ...
    @property
    def deviation(self) -> float | None: ...
    @property
    def deviation_kind(self) -> str: ...
    @property
    def repetitions(self) -> int: ...
    @property
    def samples(self) -> tuple[float, ...]: ...


@dataclass(frozen=True)
class Estimate:
    """A mean, the sample standard deviation (divided by n - 1) of its repetitions, and how many there were."""

    mean: float
    deviation: float
    count: int

    @property
    def standard_error(self) -> float:
        return self.deviation / math.sqrt(self.count)


def estimate_of(measured: Measured) -> Estimate | None:
    """From the samples where they are known, else from mean, deviation and count; None where that says too little."""
    if measured.mean is None:
        return None
    if len(measured.samples) >= 2:
        return Estimate(measured.mean, statistics.stdev(measured.samples), len(measured.samples))
    if measured.deviation is None or measured.repetitions < 2:
        return None
    deviation = measured.deviation
    if measured.deviation_kind == "population":
        deviation *= math.sqrt(measured.repetitions / (measured.repetitions - 1))
    return Estimate(measured.mean, deviation, measured.repetitions)


def interval_of(measured: Measured, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """The confidence interval of the mean, or None where repetitions or their deviation are unknown."""
    estimate = estimate_of(measured)
    if estimate is None:
        return None
    half = t_quantile(0.5 + confidence / 2, estimate.count - 1) * estimate.standard_error
    return estimate.mean - half, estimate.mean + half


@dataclass(frozen=True)
class Difference:
    """second - first, its confidence interval, and Welch's degrees of freedom."""

    difference: float
    low: float
    high: float
    degrees_of_freedom: float

    @property
    def shown(self) -> bool:
        """Whether a difference is shown: zero lies outside the interval."""
        return self.low > 0 or self.high < 0


def welch(first: Estimate, second: Estimate, confidence: float = CONFIDENCE) -> Difference:
    """The difference of two means whose variances need not be equal (Welch 1947; degrees of freedom: Satterthwaite)."""
    parts = [estimate.deviation**2 / estimate.count for estimate in (first, second)]
    difference = second.mean - first.mean
    total = sum(parts)
    if total == 0:
        return Difference(difference, difference, difference, float(first.count + second.count - 2))
    weights = parts[0] ** 2 / (first.count - 1) + parts[1] ** 2 / (second.count - 1)
    degrees = total**2 / weights if weights > 0 else float(min(first.count, second.count) - 1)
    half = t_quantile(0.5 + confidence / 2, degrees) * math.sqrt(total)
    return Difference(difference, difference - half, difference + half, degrees)


@lru_cache(maxsize=4096)
def t_quantile(probability: float, degrees_of_freedom: float) -> float:
    """The value that Student's t stays below with this probability. Raises ValueError outside 0 < p < 1, df > 0."""
    if not 0 < probability < 1 or degrees_of_freedom <= 0:
        raise ValueError(f"no quantile of Student's t at p={probability}, df={degrees_of_freedom}")
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees_of_freedom)
    low, high = 0.0, 1.0
    while t_probability(high, degrees_of_freedom) < probability:
        low, high = high, high * 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if t_probability(middle, degrees_of_freedom) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def t_probability(value: float, degrees_of_freedom: float) -> float:
    """The probability that Student's t is below `value`."""
    tail = 0.5 * incomplete_beta(degrees_of_freedom / 2, 0.5, degrees_of_freedom / (degrees_of_freedom + value**2))
    return 1 - tail if value >= 0 else tail


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function I_x(a, b)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    front = math.exp(logarithm)
    if x < (a + 1) / (a + b + 2):
        return front * _continued_fraction(a, b, x) / a
    return 1 - front * _continued_fraction(b, a, 1 - x) / b


def _continued_fraction(a: float, b: float, x: float) -> float:
    """Lentz's method on the fraction of I_x(a, b)."""
    c, d = 1.0, 1 / _kept_off_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _ITERATIONS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d = 1 / _kept_off_zero(1 + step * d)
            c = _kept_off_zero(1 + step / c)
            value *= c * d
        if abs(c * d - 1) < _PRECISION:
            break
    return value


def _kept_off_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
