"""Pulls in fleet.db: what was planned and how far the deciding about it has come, so that any controller goes on.

Who carries a pull out holds a lock on a file beside the database: it goes with the process, however that ends.
"""

from __future__ import annotations

import fcntl
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fleet_controller.distributing.conductor import ConductorState
from fleet_controller.domain.pulls import PlannedPull, PulledFiles, PullState
from fleet_controller.settings import private_folder
from fleet_controller.state import StateDatabase

# A pull whose controller died that long ago at most is taken up by the next one, and its relays get new certificates.
RESUMED_FOR_MS = 7 * 24 * 3600 * 1000


class PullStore:
    """Pulls by id."""

    def __init__(self, database: StateDatabase) -> None:
        self._database = database

    def create(self, pull: PlannedPull) -> None:
        """Keeps it unless it is there."""
        now = _now_ms()
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO pulls (pull_id, digest, title, body, conductor, state, reason, created_unix_ms,"
                " updated_unix_ms) VALUES (?, ?, ?, ?, '', ?, '', ?, ?)",
                (
                    pull.pull_id, pull.digest, pull.files.repository, pull.model_dump_json(), PullState.RUNNING.value,
                    now, now,
                ),
            )  # fmt: skip

    def get(self, pull_id: str) -> PlannedPull | None:
        found = self._database.connection.execute("SELECT body FROM pulls WHERE pull_id = ?", (pull_id,)).fetchone()
        return PlannedPull.model_validate_json(found[0]) if found else None

    def state(self, pull_id: str) -> PullState | None:
        found = self._database.connection.execute("SELECT state FROM pulls WHERE pull_id = ?", (pull_id,)).fetchone()
        return PullState(found[0]) if found else None

    def conductor(self, pull_id: str) -> ConductorState | None:
        """None before the chain was begun."""
        found = self._database.connection.execute(
            "SELECT conductor FROM pulls WHERE pull_id = ?", (pull_id,)
        ).fetchone()
        return ConductorState.model_validate_json(found[0]) if found and found[0] else None

    def save_conductor(self, pull_id: str, state: ConductorState) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE pulls SET conductor = ?, updated_unix_ms = ? WHERE pull_id = ?",
                (state.model_dump_json(), _now_ms(), pull_id),
            )

    def touch(self, pull_id: str) -> None:
        """Somebody is at it."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE pulls SET updated_unix_ms = ? WHERE pull_id = ?", (_now_ms(), pull_id))

    def stop(self, pull_id: str) -> None:
        """Tells whoever carries it out to end it."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE pulls SET state = ?, reason = '', updated_unix_ms = ? WHERE pull_id = ? AND state = ?",
                (PullState.STOPPED.value, _now_ms(), pull_id, PullState.RUNNING.value),
            )

    def end(self, pull_id: str, state: PullState, reason: str = "") -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE pulls SET state = ?, reason = ?, updated_unix_ms = ? WHERE pull_id = ?",
                (state.value, reason, _now_ms(), pull_id),
            )

    def running(self) -> tuple[PlannedPull, ...]:
        """Those that nobody ended and that can be gone on with, the newest first."""
        rows = self._database.connection.execute(
            "SELECT body FROM pulls WHERE state = ? AND updated_unix_ms > ? ORDER BY created_unix_ms DESC",
            (PullState.RUNNING.value, _now_ms() - RESUMED_FOR_MS),
        )
        return tuple(PlannedPull.model_validate_json(body) for (body,) in rows)

    def begun_on(self, files: PulledFiles) -> frozenset[str]:
        """Hosts that may have parts of these files, from a pull that did not end well."""
        rows = self._database.connection.execute(
            "SELECT body FROM pulls WHERE title = ? AND state != ?", (files.repository, PullState.DONE.value)
        )
        pulls = [PlannedPull.model_validate_json(body) for (body,) in rows]
        return frozenset(host.host for pull in pulls if pull.files == files for host in pull.partners)

    def save_links(self, rates: Mapping[str, float]) -> None:
        """The best rate that each host was seen to receive at, in bytes a second."""
        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO host_links VALUES (?, ?, ?)",
                [(host, rate, _now_ms()) for host, rate in rates.items()],
            )

    def links(self) -> dict[str, float]:
        return dict(self._database.connection.execute("SELECT host, bytes_per_second FROM host_links"))

    @contextmanager
    def carrying_out(self, pull_id: str) -> Iterator[bool]:
        """Whether this process is the one that carries the pull out, until the end of the block."""
        folder = private_folder(self._database.path.parent / "pulls")
        with (folder / f"{pull_id}.lock").open("a", encoding="ascii") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
            else:
                yield True

    def is_carried_out(self, pull_id: str) -> bool:
        """Whether some process does; asked of the lock, so that a dead one counts for nothing."""
        with self.carrying_out(pull_id) as ours:
            return not ours


def create_pulls(connection: sqlite3.Connection) -> None:
    """The first form of the tables."""
    connection.execute(
        "CREATE TABLE pulls (pull_id TEXT PRIMARY KEY, digest TEXT, title TEXT, body TEXT, conductor TEXT, state TEXT,"
        " reason TEXT, created_unix_ms INTEGER, updated_unix_ms INTEGER)"
    )
    connection.execute(
        "CREATE TABLE host_links (host TEXT PRIMARY KEY, bytes_per_second REAL, measured_unix_ms INTEGER)"
    )


def _now_ms() -> int:
    return int(time.time() * 1000)
