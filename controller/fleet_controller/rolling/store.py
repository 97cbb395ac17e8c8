"""Rollouts in fleet.db: two plain tables, each change kept before the next act, so that nothing is lost with a process.

Who carries a rollout out holds a lock on a file beside the database: it goes with the process, however that ends.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fleet_controller.domain.base import Problem
from fleet_controller.domain.rollouts import Before, HostPhase, Rollout, RolloutHost, RolloutState, Strategy
from fleet_controller.settings import private_folder
from fleet_controller.state import StateDatabase

LOCK_TRIES, LOCK_PAUSE_SECONDS = 5, 0.02

_COLUMNS = "number, plan_id, title, service, strategy, state, reason, created_unix_ms"
_UPDATE_HOST = (
    "UPDATE rollout_hosts SET host = ?, wave = ?, phase = ?, before = ?, problem = ?, changed_unix_ms = ?"
    " WHERE number = ? AND host = ?"
)


class RolloutStore:
    """Rollouts by number, newest first where several are given."""

    def __init__(self, database: StateDatabase) -> None:
        self._database = database

    @contextmanager
    def making(self) -> Iterator[None]:
        """One at a time looks whether its hosts are free, and creates its rollout."""
        with self._lock_file("making").open("a", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def create(
        self, rollout: Rollout, plan_body: str, supersedes: Sequence[Rollout] = (), aborts: Sequence[Rollout] = ()
    ) -> Rollout:
        """Keeps a new one under the next number; those whose hosts it goes on with end in the same moment."""
        now = _now_ms()
        with self._database.transaction() as connection:
            for other in supersedes:
                _set_state(connection, other.number, RolloutState.SUPERSEDED, rollout.title, now)
            for other in aborts:
                _set_state(connection, other.number, RolloutState.ABORTED, f"{rollout.title} came after it", now)
            values = (
                rollout.plan_id, rollout.title, rollout.service, rollout.strategy.model_dump_json(), plan_body,
                rollout.state.value, rollout.reason, "", now, now,
            )  # fmt: skip
            cursor = connection.execute(
                "INSERT INTO rollouts (plan_id, title, service, strategy, plan, state, reason, wanted, created_unix_ms,"
                " updated_unix_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )
            number = int(cursor.lastrowid or 0)
            rows = [(number, place, *_host_row(host)) for place, host in enumerate(rollout.hosts)]
            connection.executemany("INSERT INTO rollout_hosts VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        return rollout.model_copy(update={"number": number, "created_unix_ms": now})

    def get(self, number: int) -> Rollout | None:
        rows = self._select("WHERE number = ?", (number,))
        return rows[0] if rows else None

    def newest(self, most: int = 20) -> tuple[Rollout, ...]:
        return self._select("ORDER BY number DESC LIMIT ?", (most,))

    def all(self) -> tuple[Rollout, ...]:
        return self._select("ORDER BY number DESC", ())

    def unfinished(self) -> tuple[Rollout, ...]:
        """Those that somebody carries out, should carry out, or may resume."""
        ended = [state.value for state in RolloutState if state.final]
        marks = ", ".join("?" for _ in ended)
        return self._select(f"WHERE state NOT IN ({marks}) ORDER BY number DESC", tuple(ended))

    def with_hosts_away(self) -> tuple[Rollout, ...]:
        """Those that are done but for hosts that did not answer."""
        where = "WHERE state = ? AND number IN (SELECT number FROM rollout_hosts WHERE phase = ?) ORDER BY number DESC"
        return self._select(where, (RolloutState.DONE.value, HostPhase.AWAY.value))

    def of_service(self, service: str) -> tuple[Rollout, ...]:
        return self._select("WHERE service = ? ORDER BY number DESC", (service,))

    def plan(self, number: int) -> str:
        """The stored plan that the rollout carries out."""
        found = self._database.connection.execute("SELECT plan FROM rollouts WHERE number = ?", (number,)).fetchone()
        return str(found[0])

    def set_plan(self, number: int, body: str) -> None:
        """With what was planned later, for hosts that were away."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE rollouts SET plan = ? WHERE number = ?", (body, number))

    def set_state(self, number: int, state: RolloutState, reason: str = "") -> None:
        with self._database.transaction() as connection:
            _set_state(connection, number, state, reason, _now_ms())

    def set_host(self, number: int, host: RolloutHost) -> None:
        with self._database.transaction() as connection:
            connection.execute(_UPDATE_HOST, (*_host_row(host), number, host.host))
            connection.execute("UPDATE rollouts SET updated_unix_ms = ? WHERE number = ?", (_now_ms(), number))

    def save(self, rollout: Rollout) -> None:
        """State, reason and all hosts at once."""
        with self._database.transaction() as connection:
            _set_state(connection, rollout.number, rollout.state, rollout.reason, _now_ms())
            connection.executemany(
                _UPDATE_HOST, [(*_host_row(host), rollout.number, host.host) for host in rollout.hosts]
            )

    def ask(self, number: int, wanted: RolloutState | None) -> None:
        """Tells whoever carries it out to pause or abort; None takes that back."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE rollouts SET wanted = ? WHERE number = ?", (wanted.value if wanted else "", number)
            )

    def wanted(self, number: int) -> RolloutState | None:
        found = self._database.connection.execute("SELECT wanted FROM rollouts WHERE number = ?", (number,)).fetchone()
        return RolloutState(found[0]) if found and found[0] else None

    @contextmanager
    def carrying_out(self, number: int) -> Iterator[bool]:
        """Whether this process is the one that carries the rollout out, until the end of the block."""
        with self._lock_file(str(number)).open("a", encoding="ascii") as lock:
            yield _locked(lock, LOCK_TRIES)

    def is_carried_out(self, number: int) -> bool:
        """Whether some process does; asked of the lock, so that a dead one counts for nothing."""
        with self._lock_file(str(number)).open("a", encoding="ascii") as lock:
            return not _locked(lock, 1)

    def _lock_file(self, name: str) -> Path:
        return private_folder(self._database.path.parent / "rollouts") / f"{name}.lock"

    def _select(self, where: str, values: tuple[object, ...]) -> tuple[Rollout, ...]:
        connection = self._database.connection
        found = []
        for row in connection.execute(f"SELECT {_COLUMNS} FROM rollouts {where}", values).fetchall():
            number = row[0]
            hosts = connection.execute(
                "SELECT host, wave, phase, before, problem, changed_unix_ms FROM rollout_hosts WHERE number = ?"
                " ORDER BY position",
                (number,),
            )
            found.append(_rollout(row, hosts.fetchall()))
        return tuple(found)


def _locked(lock: IO[str], tries: int) -> bool:
    """Several tries: whoever only asks whether somebody has it takes it for a moment himself."""
    for left in reversed(range(tries)):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if left:
                time.sleep(LOCK_PAUSE_SECONDS)
        else:
            return True
    return False


def create_rollouts(connection: sqlite3.Connection) -> None:
    """The first form of the tables."""
    connection.execute(
        "CREATE TABLE rollouts (number INTEGER PRIMARY KEY AUTOINCREMENT, plan_id TEXT, title TEXT, service TEXT,"
        " strategy TEXT, plan TEXT, state TEXT, reason TEXT, wanted TEXT, created_unix_ms INTEGER,"
        " updated_unix_ms INTEGER)"
    )
    connection.execute(
        "CREATE TABLE rollout_hosts (number INTEGER, position INTEGER, host TEXT, wave INTEGER, phase TEXT,"
        " before TEXT, problem TEXT, changed_unix_ms INTEGER, PRIMARY KEY (number, host))"
    )


def _set_state(connection: sqlite3.Connection, number: int, state: RolloutState, reason: str, now: int) -> None:
    connection.execute(
        "UPDATE rollouts SET state = ?, reason = ?, wanted = '', updated_unix_ms = ? WHERE number = ?",
        (state.value, reason, now, number),
    )


def _host_row(host: RolloutHost) -> tuple[object, ...]:
    before = host.before.model_dump_json() if host.before else None
    problem = host.problem.model_dump_json() if host.problem else None
    return host.host, host.wave, host.phase.value, before, problem, host.changed_unix_ms


def _rollout(row: Sequence[object], hosts: Sequence[Sequence[object]]) -> Rollout:
    number, plan_id, title, service, strategy, state, reason, created = row
    return Rollout.model_validate(
        {
            "number": number,
            "plan_id": plan_id,
            "title": title,
            "service": service,
            "strategy": Strategy.model_validate_json(str(strategy)),
            "state": state,
            "reason": reason,
            "created_unix_ms": created,
            "hosts": tuple(_host(host) for host in hosts),
        }
    )


def _host(row: Sequence[object]) -> RolloutHost:
    host, wave, phase, before, problem, changed = row
    return RolloutHost.model_validate(
        {
            "host": host,
            "wave": wave,
            "phase": HostPhase(str(phase)),
            "before": Before.model_validate(json.loads(str(before))) if before else None,
            "problem": Problem.model_validate(json.loads(str(problem))) if problem else None,
            "changed_unix_ms": changed,
        }
    )


def _now_ms() -> int:
    return int(time.time() * 1000)
