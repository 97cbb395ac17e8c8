"""The processes that a job's steps started: written down, so that whoever comes next can end them.

A child carries a marker in its environment and leads a session of its own; so its grandchildren are found, too,
after it has died and they have been handed to init.
"""

import contextlib
import hashlib
import json
from pathlib import Path

from fleet_agent.jobs.store import JobFolder, write_json
from fleet_agent.process import ProcessIdentity, terminate_tree

MARKER_NAME = "FLEET_JOB"


def marker_value(folder: JobFolder, step_index: int) -> str:
    """Says in a process's environment which step of which job (of which agent) started it."""
    agent = hashlib.sha256(str(folder.path.absolute()).encode()).hexdigest()[:12]
    return f"{folder.job_id}/{step_index}/{agent}"


class ChildRecord:
    """children.json: the running children of the job's present step."""

    def __init__(self, folder: JobFolder) -> None:
        self._path = folder.path / "children.json"
        self._children: dict[ProcessIdentity, str] = {}

    def add(self, identity: ProcessIdentity, marker: str) -> None:
        self._children[identity] = marker
        self._write()

    def remove(self, identity: ProcessIdentity) -> None:
        if self._children.pop(identity, None) is not None:
            # On a full disk a dead child stays written down: harmless, since its identity matches nobody any more.
            with contextlib.suppress(OSError):
                self._write()

    def _write(self) -> None:
        rows = [{"pid": c.pid, "start_token": c.start_token, "marker": m} for c, m in self._children.items()]
        write_json(self._path, rows)


def recorded_children(path: Path) -> list[tuple[ProcessIdentity, str]]:
    """(child, marker) as a former runner left them; empty where there is no record."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [(ProcessIdentity(int(row["pid"]), str(row["start_token"])), str(row["marker"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return []


async def end_children(folder: JobFolder, grace_seconds: float) -> int:
    """End what a dead runner left behind, with its whole trees; the number of trees asked to end."""
    path = folder.path / "children.json"
    children = recorded_children(path)
    for identity, marker in children:
        await terminate_tree(identity, grace_seconds, f"{MARKER_NAME}={marker}")
    path.unlink(missing_ok=True)
    return len(children)
