"""Fitting sums of products: regularised, robust least squares in logarithms, in plain Python.

A cost model says that a time is a sum of terms, each a known quantity times a few unknown positive factors:
`time = sum_k known_k * product_p factor_p`. With logarithms of the factors as parameters this is a sum of exponentials:
its gradient is the share of each term, and more of any known quantity can never make the time smaller. Each parameter
has a normal prior: a few rows move it a little, many move it far, and without rows it stays where its source puts it
(shrinkage; Gelman and Hill 2006, chapter 12). Solved by Levenberg-Marquardt (Marquardt 1963) with reweighting for the
pseudo-Huber loss; uncertainty is Laplace's approximation around the optimum.

About a hundred parameters and a thousand rows take well under a second; that needs no array library.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import mul

_ITERATIONS = 60
_TOLERANCE = 1e-6  # relative improvement below which the search ends
_FIRST_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 1e-3, 1e-9, 1e9


@dataclass(frozen=True, slots=True)
class Term:
    """One summand: the logarithm of what is known, and the indices of the parameters that are added to it."""

    logarithm: float
    parameters: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Observation:
    """The logarithm of a measured sum, its standard deviation, and how often the row counts."""

    terms: tuple[Term, ...]
    log_value: float
    deviation: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Prior:
    """What is believed of a parameter before any row: normal, in logarithms."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Solution:
    """Parameters at the optimum, and the Cholesky factor of the information matrix there (lower triangle, by rows)."""

    values: tuple[float, ...]
    factor: tuple[tuple[float, ...], ...]
    loss: float
    iterations: int

    def variance_of(self, gradient: Mapping[int, float]) -> float:
        """The variance of a linear combination of the parameters: g' H^-1 g."""
        dense = [0.0] * len(self.values)
        for index, share in gradient.items():
            dense[index] = share
        return math.fsum(part * part for part in _forward(self.factor, dense))


def log_sum(terms: Sequence[Term], values: Sequence[float]) -> tuple[float, dict[int, float]]:
    """The logarithm of the sum and its gradient: for each parameter the share of the terms that it is in."""
    exponents = [term.logarithm + sum(values[index] for index in term.parameters) for term in terms]
    largest = max(exponents)
    parts = [math.exp(exponent - largest) for exponent in exponents]
    total = sum(parts)
    gradient: dict[int, float] = {}
    for term, part in zip(terms, parts, strict=True):
        share = part / total
        for index in term.parameters:
            gradient[index] = gradient.get(index, 0.0) + share
    return largest + math.log(total), gradient


def _log_total(terms: Sequence[Term], values: Sequence[float]) -> float:
    """As log_sum, without the gradient."""
    exponents = [term.logarithm + sum([values[index] for index in term.parameters]) for term in terms]
    largest = max(exponents)
    return largest + math.log(sum([math.exp(exponent - largest) for exponent in exponents]))


def fit(observations: Sequence[Observation], priors: Sequence[Prior], robustness: float = 2.0) -> Solution:
    """The most probable parameters. Rows further off than `robustness` deviations count ever less.

    Raises ValueError where a prior's deviation is not positive.
    """
    if any(prior.deviation <= 0 for prior in priors):
        raise ValueError("every parameter needs a prior with a deviation above zero")
    values = [prior.mean for prior in priors]
    loss = _loss(observations, priors, values, robustness)
    damping = _FIRST_DAMPING
    iterations = 0
    for _ in range(_ITERATIONS):
        iterations += 1
        matrix, slope = _normal_equations(observations, priors, values, robustness)
        improved = False
        while damping < _MOST_DAMPING:
            step = _solve(_cholesky(matrix, damping), slope)
            moved = [value + change for value, change in zip(values, step, strict=True)]
            new_loss = _loss(observations, priors, moved, robustness)
            if new_loss <= loss:
                improved = True
                break
            damping *= 10
        if not improved:
            break
        gain = loss - new_loss
        values, loss = moved, new_loss
        damping = max(damping / 10, _LEAST_DAMPING)
        if gain <= _TOLERANCE * max(loss, 1.0):
            break
    matrix, _ = _normal_equations(observations, priors, values, robustness)
    factor = tuple(tuple(row) for row in _cholesky(matrix, 0.0))
    return Solution(values=tuple(values), factor=factor, loss=loss, iterations=iterations)


def _loss(
    observations: Sequence[Observation], priors: Sequence[Prior], values: Sequence[float], robustness: float
) -> float:
    """Half the pseudo-Huber loss of the rows, and half the squared distance from the priors."""
    scale = robustness * robustness
    total = 0.0
    for row in observations:
        distance = (_log_total(row.terms, values) - row.log_value) / row.deviation
        total += row.weight * scale * (math.sqrt(1 + distance * distance / scale) - 1)
    for prior, value in zip(priors, values, strict=True):
        total += 0.5 * ((value - prior.mean) / prior.deviation) ** 2
    return total


def _normal_equations(
    observations: Sequence[Observation], priors: Sequence[Prior], values: Sequence[float], robustness: float
) -> tuple[list[list[float]], list[float]]:
    """The Gauss-Newton matrix (lower triangle filled) and the direction of descent, with the rows' robust weights."""
    size = len(values)
    matrix = [[0.0] * size for _ in range(size)]
    slope = [0.0] * size
    for index, prior in enumerate(priors):
        precision = 1 / (prior.deviation * prior.deviation)
        matrix[index][index] = precision
        slope[index] = (prior.mean - values[index]) * precision
    for row in observations:
        predicted, gradient = log_sum(row.terms, values)
        distance = (row.log_value - predicted) / row.deviation
        strength = row.weight / (row.deviation**2 * math.sqrt(1 + (distance / robustness) ** 2))
        missing = strength * (row.log_value - predicted)
        shares = sorted(gradient.items())
        for place, (index, share) in enumerate(shares):
            slope[index] += missing * share
            line, pull = matrix[index], strength * share
            for other, other_share in shares[: place + 1]:
                line[other] += pull * other_share
    return matrix, slope


def _cholesky(matrix: Sequence[Sequence[float]], damping: float) -> list[list[float]]:
    """L with L L' = matrix + damping * its diagonal; each row ends at the diagonal."""
    lower: list[list[float]] = []
    for index, line in enumerate(matrix):
        row: list[float] = []
        for column in range(index):
            other = lower[column]
            row.append((line[column] - sum(map(mul, row, other))) / other[column])
        rest = line[index] * (1 + damping) - sum(map(mul, row, row))
        row.append(math.sqrt(rest))
        lower.append(row)
    return lower


def _forward(lower: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """x with L x = right."""
    solved: list[float] = []
    for row, value in zip(lower, right, strict=True):
        solved.append((value - sum(map(mul, row, solved))) / row[-1])
    return solved


def _solve(lower: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """x with L L' x = right."""
    rest = _forward(lower, right)
    for index in range(len(rest) - 1, -1, -1):
        row = lower[index]
        rest[index] /= row[index]
        for column in range(index):
            rest[column] -= row[column] * rest[index]
    return rest
