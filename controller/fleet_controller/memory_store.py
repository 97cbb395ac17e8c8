"""What servers took of memory once they answered: one table of fleet.db, beside what was predicted for them."""

import sqlite3
from typing import TYPE_CHECKING

from fleet_controller.domain.memory import MemoryObservation

if TYPE_CHECKING:
    from fleet_controller.state import StateDatabase

# The newest are what a prediction is corrected from; older ones stay for whoever looks into the file.
LOADED_OBSERVATIONS = 500

COLUMNS = (
    "backend", "version", "device", "artifact", "context_tokens", "slots", "host", "predicted_bytes", "observed_bytes",
    "at_least", "buffers", "observed_unix_ms",
)  # fmt: skip


def create_memory_observations(connection: sqlite3.Connection) -> None:
    """One row for each kind of start: build, device, artifact, context and slots on a host; the newest stays."""
    connection.execute(
        "CREATE TABLE memory_observations (backend TEXT NOT NULL, version TEXT NOT NULL, device TEXT NOT NULL, "
        "artifact TEXT NOT NULL, context_tokens INTEGER NOT NULL, slots INTEGER NOT NULL, host TEXT NOT NULL, "
        "predicted_bytes INTEGER NOT NULL, observed_bytes INTEGER NOT NULL, at_least INTEGER NOT NULL, buffers TEXT, "
        "observed_unix_ms INTEGER, PRIMARY KEY (backend, version, device, artifact, context_tokens, slots, host))"
    )


def save_observation(database: "StateDatabase", observation: MemoryObservation) -> None:
    """Kept in place of an earlier one of the same kind of start on the same host."""
    row = observation.model_dump()
    marks = ", ".join("?" for _ in COLUMNS)
    with database.transaction() as connection:
        connection.execute(
            f"INSERT OR REPLACE INTO memory_observations ({', '.join(COLUMNS)}) VALUES ({marks})",
            [row[column] for column in COLUMNS],
        )


def load_observations(database: "StateDatabase") -> tuple[MemoryObservation, ...]:
    """The newest, in the order in which they were made."""
    rows = database.connection.execute(
        f"SELECT {', '.join(COLUMNS)} FROM memory_observations ORDER BY observed_unix_ms DESC LIMIT ?",
        (LOADED_OBSERVATIONS,),
    ).fetchall()
    return tuple(MemoryObservation(**dict(zip(COLUMNS, row, strict=True))) for row in reversed(rows))
