"""How a figure is written: as its tool prints it."""

from fleet_controller.results.columns import Result
from fleet_controller.results.tools import decimals


def figure(result: Result) -> str:
    """ "84.54 ± 0.56", "39.023", or "contaminated"."""
    if result.mean is None:
        return result.status.value
    return mean_and_deviation(result.mean, result.deviation, decimals(result.client))


def disturbance(result: Result) -> str:
    """ "contaminated in all 4 runs: other processes use the CPU: alice, python, 98 % of a core"; of a row without a
    figure."""
    times = f"in all {result.attempt} runs" if (result.attempt or 0) > 1 else "in its only run"
    return f"{result.status.value} {times}{f': {result.cause}' if result.cause else ''}"


def mean_and_deviation(mean: float, deviation: float | None, places: int = 2) -> str:
    return f"{mean:.{places}f}" if deviation is None else f"{mean:.{places}f} ± {deviation:.{places}f}"


def age(finished_unix_ms: int, now_unix_ms: int) -> str:
    """ "3 h", "12 d"; empty where nobody noted when it was."""
    if not finished_unix_ms:
        return ""
    seconds = max(0, now_unix_ms - finished_unix_ms) / 1000
    for limit, unit, divisor in ((90, "s", 1), (5400, "min", 60), (129600, "h", 3600)):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
