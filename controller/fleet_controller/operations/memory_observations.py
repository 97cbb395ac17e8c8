"""What servers took of memory once they answered: kept beside the predictions, for the next ones."""

import re
import sqlite3
import time
from collections.abc import Sequence

from fleet_controller.domain.memory import MemoryObservation
from fleet_controller.domain.plan import FitLine
from fleet_controller.domain.services import ServiceState
from fleet_controller.operations.context import FleetContext
from fleet_controller.planning.devices import device_name
from fleet_controller.planning.fitting.observing import observation_of
from fleet_controller.state import StateDatabase
from fleet_controller.transport.errors import TransportError
from fleet_inventory.hosts import Host

# The newest are what a prediction is corrected from; older ones stay for whoever looks into the file.
LOADED_OBSERVATIONS = 500
# A server tells its buffers while it starts: that is within its first lines, and the log may hold several starts.
LOG_LINES = 2000

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


def save_observation(database: StateDatabase, observation: MemoryObservation) -> None:
    """Kept in place of an earlier one of the same kind of start on the same host."""
    row = observation.model_dump()
    marks = ", ".join("?" for _ in COLUMNS)
    with database.transaction() as connection:
        connection.execute(
            f"INSERT OR REPLACE INTO memory_observations ({', '.join(COLUMNS)}) VALUES ({marks})",
            [row[column] for column in COLUMNS],
        )


def load_observations(database: StateDatabase) -> tuple[MemoryObservation, ...]:
    """The newest, in the order in which they were made."""
    rows = database.connection.execute(
        f"SELECT {', '.join(COLUMNS)} FROM memory_observations ORDER BY observed_unix_ms DESC LIMIT ?",
        (LOADED_OBSERVATIONS,),
    ).fetchall()
    return tuple(MemoryObservation(**dict(zip(COLUMNS, row, strict=True))) for row in reversed(rows))


async def observe_memory(
    context: FleetContext, host: Host, service: str, lines: Sequence[FitLine]
) -> MemoryObservation | None:
    """Looks at what a service holds that has just answered, and keeps it beside what its plan predicted.

    None where there is nothing to learn, or the host cannot be asked: a deploy does not fail for it.
    """
    try:
        async with context.pool.client(host) as agent:
            facts, services = await agent.facts(), await agent.list_services()
            status = next((item for item in services if item.spec.name == service), None)
            if status is None or status.state is not ServiceState.READY:
                return None
            chunks = [chunk async for chunk in agent.read_log(service, LOG_LINES)]
    except TransportError:
        return None
    gpus = tuple(gpu for gpu in facts.gpus if gpu.index in status.spec.gpu_indices)
    log = _last_start(b"".join(chunks).decode("utf-8", errors="replace"))
    now_ms = int(time.time() * 1000)
    found = observation_of(lines, status, device_name(facts, gpus), log, host.name, now_ms)
    if found is not None:
        save_observation(context.database, found)
    return found


def _last_start(log: str) -> str:
    """What was printed since the agent's last note of a start; all of it where no note is kept."""
    starts = [found.start() for found in re.finditer(r"^\[fleet\] \S+ start: ", log, re.MULTILINE)]
    return log[starts[-1] :] if starts else log
