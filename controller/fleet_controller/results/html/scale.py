"""Scales of charts: round ticks, and places in a drawing. Pure."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """From values to places along a line."""

    least: float
    most: float
    start: float
    end: float

    def place(self, value: float) -> float:
        span = self.most - self.least
        share = (value - self.least) / span if span else 0.5
        return round(self.start + share * (self.end - self.start), 1)


def round_ticks(most: float, wanted: int = 5) -> list[float]:
    """From 0 to at least `most`, in steps of 1, 2 or 5 times a power of ten."""
    if most <= 0:
        return [0.0, 1.0]
    raw = most / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    return [number * step for number in range(math.ceil(most / step - 1e-9) + 1)]


def tick_text(value: float) -> str:
    """ "250", "1,500", "12k", "0.5"."""
    if value >= 10_000 and value % 500 == 0:
        return f"{value / 1000:g}k"
    return f"{value:,.0f}" if value == round(value) else f"{value:g}"


def tokens_text(tokens: int) -> str:
    """ "0", "512", "8k": what engines call 8k is 8192."""
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else f"{tokens:,}"
