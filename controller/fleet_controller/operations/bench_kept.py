"""What is known of a cell from earlier: the runs that are kept, and how long they took."""

from datetime import datetime

from fleet_controller.benchmarking.cells import Identity
from fleet_controller.benchmarking.estimate import Estimate, from_earlier, guess
from fleet_controller.benchmarking.suites import Part
from fleet_controller.operations.bench_case import Case
from fleet_controller.operations.context import FleetContext
from fleet_controller.results.columns import Status
from fleet_inventory.chips import find_chip


def kept_runs(context: FleetContext, cell_id: str) -> tuple[int, str]:
    """How many runs of a cell are kept, and the day of the last one."""
    found = context.database.connection.execute(
        "SELECT run_id, max(finished_unix_ms) FROM results WHERE run_id LIKE ? AND status = ? GROUP BY run_id",
        (f"bench-{cell_id}-r%", Status.MEASURED),
    ).fetchall()
    numbers = [int(row[0].rpartition("-r")[2]) for row in found if row[0].rpartition("-r")[2].isdigit()]
    last = max((int(row[1]) for row in found), default=0)
    return max(numbers, default=0), f"{datetime.fromtimestamp(last / 1000):%Y-%m-%d %H:%M}" if last else ""


def estimated(
    case: Case,
    identity: Identity,
    part: Part,
    weights_bytes: int,
    runs: int,
    download_bytes: int,
    install: bool,
) -> Estimate:
    row = case.context.database.connection.execute(
        "SELECT finished_unix_ms - started_unix_ms, finished_unix_ms FROM runs WHERE run_id LIKE ?"
        " AND started_unix_ms > 0 ORDER BY finished_unix_ms DESC LIMIT 1",
        (f"bench-{identity.cell_id}-r%",),
    ).fetchone()
    if row is not None and not (download_bytes or install):
        day = f"{datetime.fromtimestamp(row[1] / 1000):%Y-%m-%d}"
        return from_earlier(row[0] / 1000 + 2.0, runs, day)
    gpu_cores = case.facts.apple.gpu_cores if case.facts.apple else None
    chip = find_chip(identity.chip, gpu_cores)
    return guess(part, weights_bytes, chip.bandwidth_gb_per_second if chip else None, runs, download_bytes, install)
