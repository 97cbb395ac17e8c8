"""What the controller remembers: hosts' last known facts, plans and results, in one SQLite file.

Plain tables that any tool can open. The schema's version is SQLite's own `user_version`; each migration
takes it one further and is never changed once released. Results go through sqlite-utils (`tables`), whose import
takes 0.4 s; what every command needs does without it.
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
# A plan is run within minutes; each dry run leaves one, of some hundred kilobytes for a large fleet.
PLAN_KEPT_MS = 7 * 24 * 3600 * 1000


class UnusableDatabaseError(Exception):
    """Nothing can be read from the file; the message says what to do."""


class NewerDatabaseError(UnusableDatabaseError):
    """The database was written by a newer fleet."""


@dataclass(frozen=True)
class KnownHost:
    """The last report of a host: `report` is a HostReport as a JSON object."""

    name: str
    report: dict[str, Any]
    taken_unix_ms: int


def _create_hosts_and_plans(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE hosts (name TEXT PRIMARY KEY, report TEXT, taken_unix_ms INTEGER)")
    connection.execute("CREATE TABLE plans (plan_id TEXT PRIMARY KEY, created_unix_ms INTEGER, body TEXT)")
    connection.execute("CREATE INDEX idx_plans_created_unix_ms ON plans (created_unix_ms)")


def _create_results(connection: sqlite3.Connection) -> None:
    from fleet_controller.results.schema import create_first_results

    create_first_results(connection)


def _make_results_comparable(connection: sqlite3.Connection) -> None:
    from fleet_controller.results.schema import create_comparable_results

    create_comparable_results(connection)


def _create_quality(connection: sqlite3.Connection) -> None:
    from fleet_controller.results.quality import create_quality

    create_quality(connection)


def _create_rollouts(connection: sqlite3.Connection) -> None:
    from fleet_controller.rolling.store import create_rollouts

    create_rollouts(connection)


def _create_memory_observations(connection: sqlite3.Connection) -> None:
    from fleet_controller.memory_store import create_memory_observations

    create_memory_observations(connection)


def _create_pulls(connection: sqlite3.Connection) -> None:
    from fleet_controller.pulling.store import create_pulls

    create_pulls(connection)


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (
    _create_hosts_and_plans,
    _create_results,
    _make_results_comparable,
    _create_quality,
    _create_rollouts,
    _create_memory_observations,
    _create_pulls,
)


class StateDatabase:
    """Opened at the first use: a command that keeps nothing pays nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def connection(self) -> sqlite3.Connection:
        """The open file, migrated. Raises UnusableDatabaseError."""
        private_folder(self.path.parent)
        connection = sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT_SECONDS, check_same_thread=False, isolation_level=None
        )
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            _migrate(connection, self.path)
        except sqlite3.OperationalError:  # locked, or the disk is full: the file may be sound
            raise
        except sqlite3.DatabaseError as error:
            raise UnusableDatabaseError(
                f"{self.path} is damaged ({error}); move it away: hosts and models go on, results kept in it are lost"
            ) from None
        return connection

    @cached_property
    def tables(self) -> Any:
        """The same file as a sqlite_utils.Database."""
        import sqlite_utils

        return sqlite_utils.Database(self.connection)

    def save_hosts(self, reports: Iterable[KnownHost]) -> None:
        rows = [(known.name, json.dumps(known.report), known.taken_unix_ms) for known in reports]
        if rows:
            with _transaction(self.connection) as connection:
                connection.executemany("INSERT OR REPLACE INTO hosts VALUES (?, ?, ?)", rows)

    def known_hosts(self) -> dict[str, KnownHost]:
        """The last known report of every host, by name."""
        rows = self.connection.execute("SELECT name, report, taken_unix_ms FROM hosts")
        return {name: KnownHost(name, json.loads(report), taken) for name, report, taken in rows}

    def save_plan(self, plan_id: str, body: str) -> None:
        now_ms = int(time.time() * 1000)
        with _transaction(self.connection) as connection:
            connection.execute("DELETE FROM plans WHERE created_unix_ms < ?", (now_ms - PLAN_KEPT_MS,))
            connection.execute("INSERT OR REPLACE INTO plans VALUES (?, ?, ?)", (plan_id, now_ms, body))

    def load_plan(self, plan_id: str) -> str | None:
        """The body that `save_plan` kept, or None where no such plan is known."""
        found = self.connection.execute("SELECT body FROM plans WHERE plan_id = ?", (plan_id,)).fetchone()
        return None if found is None else str(found[0])

    def transaction(self) -> "_transaction":
        """`with database.transaction() as connection:` keeps all that is written inside, or nothing of it."""
        return _transaction(self.connection)

    def close(self) -> None:
        self.__dict__.pop("tables", None)
        opened = self.__dict__.pop("connection", None)
        if opened is not None:
            opened.close()


class _transaction:
    """BEGIN IMMEDIATE .. COMMIT, or ROLLBACK where the block raised: two writers wait for each other."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> sqlite3.Connection:
        self._connection.execute("BEGIN IMMEDIATE")
        return self._connection

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._connection.execute("COMMIT" if kind is None else "ROLLBACK")


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    present = _version(connection)
    if present > len(MIGRATIONS):
        raise NewerDatabaseError(
            f"{path} has schema {present}, this fleet knows {len(MIGRATIONS)}; use the newer fleet, or move it away"
        )
    if present == len(MIGRATIONS):
        return
    with _transaction(connection):  # two processes may open a fresh file at once: one of them waits here
        for version in range(_version(connection), len(MIGRATIONS)):
            MIGRATIONS[version](connection)
            connection.execute(f"PRAGMA user_version = {version + 1}")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
