"""Which blobs we have hashed ourselves, so that an 18 GB file is not hashed again at each deploy.

A note holds while size, modification time and inode are those that were hashed; it lies in the agent's own
state, not in the cache.
"""

from pathlib import Path

from fleet_agent.jobs.store import read_json, write_json


class VerifiedNotes:
    """One small JSON file for each blob."""

    def __init__(self, machine_dir: Path) -> None:
        self._folder = machine_dir / "verified"

    def holds(self, blob: Path) -> bool:
        return read_json(self._path(blob)) == _stamp(blob)

    def write(self, blob: Path) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._path(blob), _stamp(blob))

    def _path(self, blob: Path) -> Path:
        return self._folder / f"{blob.parent.parent.name}--{blob.name}.json"


def _stamp(blob: Path) -> dict[str, object]:
    figures = blob.stat()
    return {"path": str(blob), "size": figures.st_size, "mtime_ns": figures.st_mtime_ns, "inode": figures.st_ino}
