"""The figure of a cell that was measured more than once. Pure.

Rows of one fingerprint are the same test of the same thing on the same machine, so the repetitions of its newest runs
are one sample: runs that agree make it surer, runs that do not make its bar wide. Older runs are left out, since what a
fingerprint does not name (a room's temperature, a kernel) changes with time.
"""

import math
from collections.abc import Iterable, Sequence

from fleet_controller.results.columns import DeviationKind, Result, Status
from fleet_controller.results.statistics import Estimate, estimate_of

# So many of the newest runs count, and so often does a bench measure a cell before it says that it cannot tell.
MOST_RUNS = 3


def pooled_by_fingerprint(rows: Iterable[Result]) -> list[Result]:
    """One row for each fingerprint of which there is a good one, oldest first."""
    groups: dict[str, list[Result]] = {}
    for row in rows:
        if row.status is Status.MEASURED and row.mean is not None:
            groups.setdefault(row.fingerprint_id, []).append(row)
    return sorted((pooled(group) for group in groups.values()), key=lambda row: (row.finished_unix_ms, row.run_id))


def pooled(rows: Sequence[Result]) -> Result:
    """The newest row with the mean of the newest `MOST_RUNS` of one fingerprint, and all their repetitions.

    Where a run says nothing of its own repetitions, each run is one. Raises ValueError without any row.
    """
    newest = sorted(rows, key=lambda row: (row.finished_unix_ms, row.run_id))[-MOST_RUNS:]
    if not newest:
        raise ValueError("there is no row to pool")
    if len(newest) == 1:
        return newest[0]
    found = [estimate_of(row) for row in newest]
    known = [one for one in found if one is not None]
    if len(known) < len(newest):
        known = [Estimate(row.mean or 0.0, 0.0, 1) for row in newest]
    count = sum(one.count for one in known)
    mean = math.fsum(one.mean * one.count for one in known) / count
    squares = ((one.count - 1) * one.deviation**2 + one.count * (one.mean - mean) ** 2 for one in known)
    return newest[-1].model_copy(
        update={
            "mean": mean,
            "samples": tuple(sample for row in newest for sample in row.samples) if _told(newest, count) else (),
            "repetitions": count,
            "deviation": math.sqrt(math.fsum(squares) / (count - 1)),
            "deviation_kind": DeviationKind.SAMPLE,
            "confidence_low": None,
            "confidence_high": None,
        }
    )


def _told(rows: Sequence[Result], count: int) -> bool:
    """Whether the single repetitions of all are known."""
    return sum(len(row.samples) for row in rows) == count
