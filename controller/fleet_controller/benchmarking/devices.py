"""Which measurements of one host go side by side: those on other devices. Pure."""

from collections.abc import Iterable, Sequence


def overlap(first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether two sets of devices have one in common; an empty one is the whole host."""
    return not first or not second or bool(set(first) & set(second))


def wall_seconds(cells: Iterable[tuple[Sequence[int], float]]) -> float:
    """How long these (devices, seconds) take together, where each begins as soon as its devices are free and every
    earlier one that wants one of them has ended."""
    ends: list[tuple[Sequence[int], float]] = []
    for devices, seconds in cells:
        start = max((end for others, end in ends if overlap(devices, others)), default=0.0)
        ends.append((devices, start + seconds))
    return max((end for _, end in ends), default=0.0)
