"""How a relay ends that cannot go on: what it tells, and what it leaves on the disk."""

import contextlib
import os

from fleet_agent.jobs.errors import DISK_FULL_ERRNOS, JobProblem, disk_full, readable_size
from fleet_agent.problem import ProblemError
from fleet_agent.relay.control import Failed
from fleet_agent.relay.store import PieceStore
from fleet_agent.steps.output import free_bytes

# Of a full disk so much is given back, or less of a small part: everything else on the host lives there, too.
ROOM_BYTES = 64 << 20
ROOM_SHARE = 0.1


def failure_of(error: Exception, store: PieceStore) -> Failed:
    """The last event. Nobody writes parts any more."""
    full = isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS
    if full or (isinstance(error, ProblemError) and error.code == "disk-full"):
        error = _disk_full(store)
    if isinstance(error, ProblemError):
        return Failed(error.code, error.message, error.remedy)
    return Failed("relay-failed", str(error), "see the agent's log on that host; the same pull goes on from there")


def _disk_full(store: PieceStore) -> JobProblem:
    """A full disk in the cache's name, not in that of a part, and what is kept."""
    make_room(store)
    kept, missing = 0, 0
    for file in store.files:
        size = store.cache.present_bytes(store.manifest.repository, file.entry)
        kept, missing = kept + size, missing + max(0, file.entry.size_bytes - size)
    problem = disk_full(store.cache.folder, missing, free_bytes(store.cache.folder))
    remedy = f"{problem.remedy}; the same command goes on from the {readable_size(kept)} that are kept"
    return JobProblem(problem.code, problem.message, remedy if kept else problem.remedy)


def make_room(store: PieceStore) -> None:
    """Cuts the end off the part that filled the disk, in whole pieces."""
    file = store.first_unfinished()
    with contextlib.suppress(OSError):
        if file is None or file.descriptor < 0 or file.whole:
            return
        size = os.fstat(file.descriptor).st_size
        keep = size - min(ROOM_BYTES, int(size * ROOM_SHARE))
        os.ftruncate(file.descriptor, keep - keep % store.manifest.piece_bytes)
