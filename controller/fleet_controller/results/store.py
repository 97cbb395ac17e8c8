"""Results in SQLite: one run is one transaction, so whoever dies in between loses nothing that was told as kept.

These are plain statements, because sqlite-utils commits by itself after each table, and takes 0.4 s to import.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from fleet_controller.results.columns import DeviceSample, Result, Run, Status
from fleet_controller.results.rows import device_sample_of, plain_row, result_of, row_of, run_of
from fleet_controller.state import StateDatabase


def save_results(
    database: StateDatabase,
    results: Iterable[Result],
    run: Run | None = None,
    device_samples: Iterable[DeviceSample] = (),
) -> int:
    """Keep the rows of one run, its raw output and its device samples: all of it or, where something fails, nothing.

    A row that is there already (equal `result_key`), a run of a known id and a sample of the same moment are left as
    they are, so a resend is harmless. Returns how many rows are new.
    """
    return save_batches(database, [(results, [run] if run is not None else [], device_samples)])[0]


Batch = tuple[Iterable[Result], Iterable[Run], Iterable[DeviceSample]]


def save_batches(database: StateDatabase, batches: Iterable[Batch]) -> list[int]:
    """As `save_results` for several files in one transaction; how many rows of each are new."""
    prepared = [
        ([row_of(result) for result in results], [*map(plain_row, runs)], [*map(plain_row, samples)])
        for results, runs, samples in batches
    ]
    added: list[int] = []
    with database.transaction() as connection:
        for rows, runs, samples in prepared:
            before = connection.total_changes
            _insert(connection, "results", rows)
            added.append(connection.total_changes - before)
            _insert(connection, "runs", runs)
            _insert(connection, "device_samples", samples)
    return added


def _insert(connection: sqlite3.Connection, table: str, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        names = ", ".join(rows[0])
        marks = ", ".join("?" * len(rows[0]))
        statement = f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})"
        connection.executemany(statement, [tuple(row.values()) for row in rows])


def measured_fingerprints(database: StateDatabase) -> frozenset[str]:
    """Fingerprints of which a good measured row is there: what a bench may skip."""
    found = database.connection.execute(
        "SELECT DISTINCT fingerprint_id FROM results WHERE status = ? AND source = 'measured'", (Status.MEASURED,)
    )
    return frozenset(row[0] for row in found)


@dataclass(frozen=True)
class Filter:
    """What a listing shows; an empty field lets everything through. `models` and `backends` are compared without case.

    `host_pattern` is matched against the names as recorded, since a host may have left the inventory: names, globs and
    !exclusions, separated by commas.
    """

    host_pattern: str = ""
    models: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    quantizations: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    test_kinds: tuple[str, ...] = ()
    least_depth: int | None = None
    most_depth: int | None = None
    concurrency: int | None = None
    since_unix_ms: int = 0
    run_ids: tuple[str, ...] = ()


# More than any time in milliseconds.
_GOOD_FIRST = 10**15
_LISTS = (
    ("models", "model"),
    ("backends", "backend"),
    ("quantizations", "quantization"),
    ("suites", "suite"),
    ("sources", "source"),
    ("clients", "client"),
    ("run_ids", "run_id"),
)


def load_results(database: StateDatabase, host_glob: str = "", model: str = "") -> list[Result]:
    """Results, oldest first."""
    wanted = Filter(host_pattern=host_glob, models=(model,) if model else ())
    return [result for _, result in select_results(database, wanted)]


def select_results(
    database: StateDatabase,
    wanted: Filter,
    newest: int = 0,
    one_per_fingerprint: bool = False,
    with_contaminated: bool = False,
) -> Iterator[tuple[int, Result]]:
    """(id, row) of what passes the filter, oldest first; with `newest`, only that many of the newest.

    With `one_per_fingerprint` only the newest good row of each, which is what a matrix is drawn from; `newest` then
    counts these. `with_contaminated`: where a fingerprint has no good row, its newest that says what disturbed it.
    """
    where, values = _where(wanted, database.connection)
    if one_per_fingerprint:
        good = f"(status = '{Status.MEASURED}' AND mean IS NOT NULL)"
        where += f" AND ({good} OR status = '{Status.CONTAMINATED}')" if with_contaminated else f" AND {good}"
        # SQLite takes a bare column beside max() from the row that holds the maximum.
        latest = f"max(finished_unix_ms + (status = '{Status.MEASURED}') * {_GOOD_FIRST})"
        inner = f"SELECT id, {latest} AS latest FROM results WHERE {where} GROUP BY fingerprint_id"
        inner += f" ORDER BY latest DESC, id DESC LIMIT {int(newest)}" if newest else ""
        statement = f"SELECT * FROM results WHERE id IN (SELECT id FROM ({inner})) ORDER BY finished_unix_ms, id"
    elif newest:
        inner = f"SELECT * FROM results WHERE {where} ORDER BY finished_unix_ms DESC, id DESC LIMIT {int(newest)}"
        statement = f"SELECT * FROM ({inner}) ORDER BY finished_unix_ms, id"
    else:
        statement = f"SELECT * FROM results WHERE {where} ORDER BY finished_unix_ms, id"
    for row in _rows(database, statement, values):
        yield int(row["id"]), result_of(row)


def count_results(database: StateDatabase, wanted: Filter) -> int:
    where, values = _where(wanted, database.connection)
    return int(database.connection.execute(f"SELECT count(*) FROM results WHERE {where}", values).fetchone()[0])


def find_result(database: StateDatabase, result_id: int) -> Result | None:
    found = next(_rows(database, "SELECT * FROM results WHERE id = ?", (result_id,)), None)
    return None if found is None else result_of(found)


def load_run(database: StateDatabase, run_id: str) -> Run | None:
    found = next(_rows(database, "SELECT * FROM runs WHERE run_id = ?", (run_id,)), None)
    return None if found is None else run_of(found)


def load_device_samples(database: StateDatabase, run_id: str) -> list[DeviceSample]:
    """Oldest first."""
    rows = _rows(database, "SELECT * FROM device_samples WHERE run_id = ? ORDER BY unix_ms, device_index", (run_id,))
    return [device_sample_of(row) for row in rows]


def load_runs(database: StateDatabase, run_ids: Iterable[str]) -> Iterator[Run]:
    for run_id in run_ids:
        run = load_run(database, run_id)
        if run is not None:
            yield run


def replace_reference(database: StateDatabase, results: Iterable[Result], runs: Iterable[Run], prefix: str) -> None:
    """Put these reference rows in the place of all that were there; runs of reference rows start with `prefix`."""
    rows, run_rows = [row_of(result) for result in results], [plain_row(run) for run in runs]
    with database.transaction() as connection:
        connection.execute("DELETE FROM results WHERE source = 'reference'")
        connection.execute("DELETE FROM runs WHERE substr(run_id, 1, ?) = ?", (len(prefix), prefix))
        _insert(connection, "results", rows)
        _insert(connection, "runs", run_rows)


def _rows(database: StateDatabase, statement: str, values: Sequence[Any]) -> Iterator[dict[str, Any]]:
    reader = database.connection.execute(statement, values)
    names = [column[0] for column in reader.description]
    for row in reader:
        yield dict(zip(names, row, strict=True))


def _where(wanted: Filter, connection: sqlite3.Connection) -> tuple[str, list[Any]]:
    conditions, values = ["1"], list[Any]()
    for attribute, column in _LISTS:
        names = getattr(wanted, attribute)
        if names:
            conditions.append(f"{column} COLLATE NOCASE IN ({', '.join('?' * len(names))})")
            values += names
    if wanted.test_kinds:
        conditions.append(f"test_kind IN ({', '.join('?' * len(wanted.test_kinds))})")
        values += wanted.test_kinds
    bounds = (
        ("depth >= ?", wanted.least_depth),
        ("depth <= ?", wanted.most_depth),
        ("concurrency = ?", wanted.concurrency),
        ("finished_unix_ms >= ?", wanted.since_unix_ms or None),
    )
    for condition, bound in bounds:
        if bound is not None:
            conditions.append(condition)
            values.append(bound)
    if wanted.host_pattern:
        hosts = _matching_hosts(wanted.host_pattern, connection)
        conditions.append(f"host IN ({', '.join('?' * len(hosts))})")
        values += hosts
    return " AND ".join(conditions), values


def _matching_hosts(pattern: str, connection: sqlite3.Connection) -> list[str]:
    parts = [part.strip() for part in pattern.split(",") if part.strip()]
    excluded = [part[1:] for part in parts if part.startswith("!")]
    included = [part if part != "all" else "*" for part in parts if not part.startswith("!")] or ["*"]
    names = [str(row[0]) for row in connection.execute("SELECT DISTINCT host FROM results")]
    return [
        name
        for name in names
        if any(fnmatchcase(name, glob) for glob in included) and not any(fnmatchcase(name, glob) for glob in excluded)
    ]
