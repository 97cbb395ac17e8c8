"""Results in and out: listing, one in full, and importing files."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fleet_controller.benchmarking.calibration import is_calibration
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.problems import OperationError
from fleet_controller.results.columns import DeviceSample, Result, Run
from fleet_controller.results.reference import sync_reference
from fleet_controller.results.store import (
    Filter,
    count_results,
    find_result,
    load_device_samples,
    load_run,
    load_runs,
    save_batches,
    select_results,
)

if TYPE_CHECKING:
    from fleet_controller.results.importing.model import FileContext, ImportFailure

PIECE_ROWS = 500
SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class Listing:
    """Which rows are wanted; see `select_results`."""

    wanted: Filter
    newest: int = 0
    one_per_fingerprint: bool = False
    with_runs: bool = False


@dataclass(frozen=True)
class Piece:
    """Some rows of a listing with their ids. `left_out` rows passed the filter and are more than `newest`."""

    rows: tuple[tuple[int, Result], ...] = ()
    runs: tuple[Run, ...] = ()
    device_samples: tuple[DeviceSample, ...] = ()
    left_out: int = 0


def list_results(context: FleetContext, listing: Listing) -> Iterator[Piece]:
    """Rows oldest first, in pieces; the runs of a piece are those that no piece before had. Raises OperationError."""
    database = context.database
    sync_reference(database)
    wanted = replace(listing.wanted, host_pattern=_with_groups(context, listing.wanted.host_pattern))
    seen: set[str] = set()
    rows: list[tuple[int, Result]] = []
    total = 0
    # Tables are of models that people run; made-up ones are shown to those who ask for them.
    hides_calibration = listing.one_per_fingerprint and not (wanted.models or wanted.suites)
    for row in select_results(
        database, wanted, listing.newest, listing.one_per_fingerprint, with_contaminated=listing.with_runs
    ):
        if hides_calibration and is_calibration(row[1].model):
            continue
        rows.append(row)
        total += 1
        if len(rows) == PIECE_ROWS:
            yield _piece(context, rows, seen, listing.with_runs)
            rows = []
    last = _piece(context, rows, seen, listing.with_runs)
    left_out = count_results(database, wanted) - total if listing.newest and total == listing.newest else 0
    yield replace(last, left_out=left_out)


def _piece(context: FleetContext, rows: list[tuple[int, Result]], seen: set[str], with_runs: bool) -> Piece:
    if not with_runs:
        return Piece(tuple(rows))
    new = [run_id for run_id in dict.fromkeys(result.run_id for _, result in rows) if run_id not in seen]
    seen.update(new)
    samples = tuple(sample for run_id in new for sample in load_device_samples(context.database, run_id))
    return Piece(tuple(rows), tuple(load_runs(context.database, new)), samples)


def _with_groups(context: FleetContext, pattern: str) -> str:
    """The pattern with the inventory's @groups written out; other names are matched as recorded."""
    parts: list[str] = []
    for part in filter(None, (part.strip() for part in pattern.split(","))):
        mark, name = ("!", part[1:]) if part.startswith("!") else ("", part)
        names = [host.name for host in context.select(name)] if name.startswith("@") else [name]
        parts += [mark + name for name in names]
    return ",".join(parts)


def get_result(context: FleetContext, result_id: int) -> tuple[Result, Run | None, list[DeviceSample]]:
    """One row with its run and what its devices did meanwhile. Raises OperationError (usage)."""
    sync_reference(context.database)
    result = find_result(context.database, result_id)
    if result is None:
        raise OperationError("no-such-result", f"there is no result {result_id}", "fleet results list", usage=True)
    run_id = result.run_id
    return result, load_run(context.database, run_id), load_device_samples(context.database, run_id)


def import_results(context: FleetContext, files: list[tuple["FileContext", bytes]]) -> list[tuple[str, int, int]]:
    """(file, rows added, rows that were there already). Where one line is not understood, nothing of any file is kept.

    Raises OperationError (usage).
    """
    from fleet_controller.results.importing.model import ImportFailure
    from fleet_controller.results.importing.read import read_files

    sync_reference(context.database)
    try:
        readings = read_files(files)
    except ImportFailure as failure:
        raise _refusal(failure) from None
    batches = [(reading.results, reading.runs, reading.device_samples) for reading in readings]
    added = save_batches(context.database, batches)
    return [
        (reading.context.name, count, len(reading.results) - count)
        for reading, count in zip(readings, added, strict=True)
    ]


def _refusal(failure: "ImportFailure") -> OperationError:
    problems = failure.problems
    lines = [f"  {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"  and {len(problems) - SHOWN_PROBLEMS} more")
    remedies = list(dict.fromkeys(problem.remedy for problem in problems if problem.remedy))
    message = "nothing was imported, since not everything is understood:\n" + "\n".join(lines)
    return OperationError("import", message, "; ".join(remedies[:3]), usage=True)
