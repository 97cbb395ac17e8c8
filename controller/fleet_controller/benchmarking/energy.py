"""Energy per generated token, where a device tells its power.

Method: the power samples of all devices of the measurement (once a second) are joined by straight lines; the joules of
a decode test are the integral of that line over the intervals in which the tool decoded, and are divided by the tokens
that it generated in them. The intervals come from the tool itself: llama-bench's --progress lines (a generation run
lasts from its line to the next one; filling the depth has a line of its own), llama-benchy's progress events (first
token to end of request, one request at a time). An interval before the first or after the last sample takes that
sample's power. Where fewer than three samples lie within the intervals, nothing is said: between samples that were
taken while the prompt was read the line knows nothing of decoding.
"""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

LEAST_SAMPLES = 3
_GENERATION_RUN = re.compile(r"benchmark (\d+)/(\d+): generation run (\d+)/(\d+)")


def power_line(samples: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """(seconds since the start, watts of all devices); a sample in which a device tells no power is left out."""
    line = []
    for sample in samples:
        watts = [device.get("power_watts") for device in sample.get("devices", ())]
        if watts and None not in watts:
            line.append((float(sample["seconds"]), float(sum(watts))))
    return line


def energy_joules(line: Sequence[tuple[float, float]], start: float, end: float) -> float:
    """The integral of the line from `start` to `end`, by the trapezoidal rule on its corners."""
    inside = [(seconds, watts) for seconds, watts in line if start < seconds < end]
    corners = [(start, power_at(line, start)), *inside, (end, power_at(line, end))]
    return sum((later[0] - earlier[0]) * (later[1] + earlier[1]) / 2 for earlier, later in itertools.pairwise(corners))


def power_at(line: Sequence[tuple[float, float]], seconds: float) -> float:
    """Watts at a moment, by linear interpolation; beyond the ends, those of the end."""
    if seconds <= line[0][0]:
        return line[0][1]
    for (t0, w0), (t1, w1) in itertools.pairwise(line):
        if seconds <= t1:
            return w0 + (w1 - w0) * (seconds - t0) / (t1 - t0)
    return line[-1][1]


def joules_per_token(
    line: Sequence[tuple[float, float]], intervals: Sequence[tuple[float, float]], tokens_each: int
) -> float | None:
    """None where no power is known, or too few samples were taken while tokens were generated."""
    inside = sum(start <= seconds <= end for seconds, _ in line for start, end in intervals)
    if inside < LEAST_SAMPLES or not tokens_each:
        return None
    return sum(energy_joules(line, start, end) for start, end in intervals) / (tokens_each * len(intervals))


def llama_bench_intervals(
    marks: Sequence[Sequence[Any]], end_seconds: float, skipped: int
) -> dict[int, list[tuple[float, float]]]:
    """Number of the benchmark (from 1) -> intervals of its generation runs, without the first `skipped`."""
    times = [float(mark[0]) for mark in marks] + [end_seconds]
    found: dict[int, list[tuple[float, float]]] = {}
    for position, mark in enumerate(marks):
        match = _GENERATION_RUN.search(str(mark[1]))
        if match and int(match[3]) > skipped:
            found.setdefault(int(match[1]), []).append((times[position], times[position + 1]))
    return found


def benchy_intervals(progress: str, started_unix_seconds: float) -> dict[int, list[tuple[float, float]]]:
    """Depth -> intervals from a request's first token to its end, from llama-benchy's progress file.

    Requests that ran beside others are left out: their intervals overlap.
    """
    depths: dict[int, int] = {}
    first: dict[int, float] = {}
    found: dict[int, list[tuple[float, float]]] = {}
    for line in progress.splitlines():
        try:
            event = json.loads(line)
            kind, moment = event["type"], float(event["ts"]) - started_unix_seconds
            request = int(event.get("request_id", -1))
            if kind == "request_start" and int(event["concurrency"]) == 1:
                depths[request] = int(event["context_size"])
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if kind == "request_first_token":
            first[request] = moment
        elif kind == "request_end" and request in first and request in depths:
            found.setdefault(depths[request], []).append((first[request], moment))
    return found
