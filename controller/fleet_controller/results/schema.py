"""The tables of results as SQLite has them, and the way there from the schema that fleet 0.1 wrote.

`results` has one row for each figure; `runs` the tools' own words; `device_samples` what the devices did meanwhile.
A released migration is never changed: it writes its columns out instead of asking today's models for them.
"""

import re
import sqlite3

# As fleet 0.1 created it.
FIRST_RESULTS = """CREATE TABLE results (
    id INTEGER PRIMARY KEY, run_id TEXT, host TEXT, model TEXT, quantization TEXT, backend TEXT, backend_version TEXT,
    artifact TEXT, client TEXT, test TEXT, prompt_tokens INTEGER, generation_tokens INTEGER, repetitions INTEGER,
    mean_tokens_per_second FLOAT, stddev_tokens_per_second FLOAT, chip TEXT, driver_version TEXT,
    power_limit_watts FLOAT, os_name TEXT, flags TEXT, raw TEXT, finished_unix_ms INTEGER)"""

RESULTS = """CREATE TABLE results (
    id INTEGER PRIMARY KEY,
    result_key TEXT NOT NULL UNIQUE,
    fingerprint_id TEXT NOT NULL,
    host TEXT NOT NULL, chip TEXT, device_count INTEGER, driver_version TEXT, runtime_version TEXT, os_name TEXT,
    power_limit_watts FLOAT, persistence_mode INTEGER, backend TEXT, backend_version TEXT, backend_commit TEXT,
    flags TEXT, model TEXT, quantization TEXT, artifact_sha256 TEXT, artifact_bytes INTEGER, suite TEXT, client TEXT,
    client_version TEXT, test_kind TEXT NOT NULL, prompt_tokens INTEGER, generation_tokens INTEGER, depth INTEGER,
    concurrency INTEGER, kv_type TEXT,
    run_id TEXT NOT NULL, job_id TEXT, lease_id TEXT, source TEXT NOT NULL, provenance TEXT, status TEXT NOT NULL,
    cause TEXT, attempt INTEGER, artifact TEXT, repetitions INTEGER, mean FLOAT, deviation FLOAT, deviation_kind TEXT,
    confidence_low FLOAT, confidence_high FLOAT, samples TEXT, tool_fields TEXT,
    started_unix_ms INTEGER, finished_unix_ms INTEGER)"""

RUNS = """CREATE TABLE runs (
    run_id TEXT PRIMARY KEY, host TEXT, job_id TEXT, lease_id TEXT, command TEXT, server_command TEXT,
    stdout TEXT, stderr TEXT, details TEXT, started_unix_ms INTEGER, finished_unix_ms INTEGER)"""

DEVICE_SAMPLES = """CREATE TABLE device_samples (
    run_id TEXT NOT NULL, attempt INTEGER, device_index INTEGER, unix_ms INTEGER, sm_clock_mhz FLOAT,
    memory_clock_mhz FLOAT, power_watts FLOAT, temperature_celsius FLOAT, utilization_percent FLOAT,
    memory_used_bytes INTEGER, throttle_reasons TEXT, foreign_processes TEXT,
    PRIMARY KEY (run_id, attempt, device_index, unix_ms)) WITHOUT ROWID"""

INDEXES = (
    "CREATE INDEX idx_results_fingerprint ON results (fingerprint_id, status, finished_unix_ms)",
    "CREATE INDEX idx_results_finished ON results (finished_unix_ms)",
    "CREATE INDEX idx_results_cell ON results (test_kind, depth, model, fingerprint_id, finished_unix_ms)",
    "CREATE INDEX idx_results_run ON results (run_id)",
)
OLD_TEST = re.compile(r"(pp|tg)\d+")


def create_first_results(connection: sqlite3.Connection) -> None:
    connection.execute(FIRST_RESULTS)
    connection.execute("CREATE INDEX idx_results_model_host ON results (model, host)")


def create_comparable_results(connection: sqlite3.Connection) -> None:
    """The old rows become measured rows without what nobody noted then; their raw output moves to `runs`."""
    connection.execute("ALTER TABLE results RENAME TO old_results")
    connection.execute("DROP INDEX IF EXISTS idx_results_model_host")
    for statement in (RESULTS, RUNS, DEVICE_SAMPLES, *INDEXES):
        connection.execute(statement)
    connection.execute(
        "INSERT INTO runs (run_id, host, job_id, command, server_command, lease_id, stdout, stderr, details,"
        " started_unix_ms, finished_unix_ms)"
        " SELECT run_id, host, run_id, '', '', '', raw, '', '{}', 0, max(finished_unix_ms) FROM old_results"
        " GROUP BY run_id"
    )
    _copy_old_rows(connection)
    connection.execute("DROP TABLE old_results")


def _copy_old_rows(connection: sqlite3.Connection) -> None:
    from fleet_controller.results.columns import Result
    from fleet_controller.results.rows import row_of

    reader = connection.execute("SELECT * FROM old_results ORDER BY id")
    names = [column[0] for column in reader.description]
    for old in reader.fetchall():
        values = dict(zip(names, old, strict=True))
        found = OLD_TEST.fullmatch(values["test"] or "")
        kind = found.group(1) if found else ("pp" if values["prompt_tokens"] else "tg")
        result = Result(
            **{name: values[name] or "" for name in OLD_TEXTS},
            test_kind=kind,
            prompt_tokens=values["prompt_tokens"] or 0,
            generation_tokens=values["generation_tokens"] or 0,
            power_limit_watts=values["power_limit_watts"],
            job_id=values["run_id"] or "",
            repetitions=values["repetitions"] or 0,
            mean=values["mean_tokens_per_second"],
            deviation=values["stddev_tokens_per_second"],
            finished_unix_ms=values["finished_unix_ms"] or 0,
        )
        # The id keeps equal rows apart: nothing of an old database is lost.
        row = {"id": values["id"], **row_of(result), "result_key": f"0.1:{values['id']}"}
        marks = ", ".join("?" * len(row))
        connection.execute(f"INSERT INTO results ({', '.join(row)}) VALUES ({marks})", list(row.values()))


OLD_TEXTS = (
    "run_id",
    "host",
    "model",
    "quantization",
    "backend",
    "backend_version",
    "artifact",
    "client",
    "chip",
    "driver_version",
    "os_name",
    "flags",
)
