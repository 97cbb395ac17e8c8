"""What the controller remembers: hosts' last known facts, plans and results, in one SQLite file.

Plain tables that any tool can open. The schema's version is SQLite's own `user_version`; each migration
takes it one further and is never changed once released.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fleet_controller.settings import private_folder

BUSY_TIMEOUT_SECONDS = 10.0


class NewerDatabaseError(Exception):
    """The database was written by a newer fleet."""


@dataclass(frozen=True)
class KnownHost:
    """The last report of a host: `report` is a HostReport as protobuf JSON."""

    name: str
    report: dict[str, Any]
    taken_unix_ms: int


def _create_hosts_and_plans(database: Any) -> None:
    database["hosts"].create({"name": str, "report": str, "taken_unix_ms": int}, pk="name")
    database["plans"].create({"plan_id": str, "created_unix_ms": int, "body": str}, pk="plan_id")
    database["plans"].create_index(["created_unix_ms"])


def _create_results(database: Any) -> None:
    from fleet_controller.results.columns import RESULT_COLUMNS

    database["results"].create({"id": int, **RESULT_COLUMNS}, pk="id")
    database["results"].create_index(["model", "host"])


MIGRATIONS: tuple[Callable[[Any], None], ...] = (_create_hosts_and_plans, _create_results)


class StateDatabase:
    """Opened at the first use: a command that keeps nothing pays nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def tables(self) -> Any:
        """The sqlite_utils.Database, migrated. Raises NewerDatabaseError."""
        import sqlite_utils

        private_folder(self.path.parent)
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_SECONDS, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        database = sqlite_utils.Database(connection)
        _migrate(database, self.path)
        return database

    def save_hosts(self, reports: Iterable[KnownHost]) -> None:
        rows = [
            {"name": known.name, "report": json.dumps(known.report), "taken_unix_ms": known.taken_unix_ms}
            for known in reports
        ]
        if rows:
            self.tables["hosts"].upsert_all(rows, pk="name")

    def known_hosts(self) -> dict[str, KnownHost]:
        """The last known report of every host, by name."""
        return {
            row["name"]: KnownHost(row["name"], json.loads(row["report"]), row["taken_unix_ms"])
            for row in self.tables["hosts"].rows
        }

    def save_plan(self, plan_id: str, body: str) -> None:
        row = {"plan_id": plan_id, "created_unix_ms": int(time.time() * 1000), "body": body}
        self.tables["plans"].upsert(row, pk="plan_id")

    def load_plan(self, plan_id: str) -> str | None:
        """The body that `save_plan` kept, or None where no such plan is known."""
        found = next(iter(self.tables["plans"].rows_where("plan_id = ?", [plan_id], limit=1)), None)
        return None if found is None else str(found["body"])

    def close(self) -> None:
        opened = self.__dict__.pop("tables", None)
        if opened is not None:
            opened.close()


def _migrate(database: Any, path: Path) -> None:
    connection = database.conn
    present = connection.execute("PRAGMA user_version").fetchone()[0]
    if present > len(MIGRATIONS):
        raise NewerDatabaseError(
            f"{path} has schema {present}, this fleet knows {len(MIGRATIONS)}; use the newer fleet, or move it away"
        )
    if present == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")  # two processes may open a fresh file at once: one of them waits here
    try:
        present = connection.execute("PRAGMA user_version").fetchone()[0]
        for version in range(present, len(MIGRATIONS)):
            MIGRATIONS[version](database)
            connection.execute(f"PRAGMA user_version = {version + 1}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
