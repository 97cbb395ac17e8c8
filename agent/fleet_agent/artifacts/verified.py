"""Which blobs we have hashed ourselves, so that an 18 GB file is not hashed again at each deploy; and which we brought.

A note holds while size, modification time and inode are those that were hashed; it lies in the agent's own
state, not in the cache.
"""

from pathlib import Path

from fleet_agent.jobs.store import read_json, write_json

BROUGHT = "brought"


class VerifiedNotes:
    """One small JSON file for each blob."""

    def __init__(self, machine_dir: Path) -> None:
        self._folder = machine_dir / "verified"

    def holds(self, blob: Path) -> bool:
        stamp = _stamp(blob)
        noted = read_json(self._path(blob))
        return {name: noted.get(name) for name in stamp} == stamp

    def write(self, blob: Path, brought: bool = False) -> None:
        """`brought`: the file was not there before, we put it there. That stays noted when it is verified again."""
        self._folder.mkdir(parents=True, exist_ok=True)
        stamp = _stamp(blob)
        if brought or self.was_brought(blob):
            stamp[BROUGHT] = True
        write_json(self._path(blob), stamp)

    def was_brought(self, blob: Path) -> bool:
        """Whether it is the very file that we put there."""
        noted = read_json(self._path(blob))
        return noted.get(BROUGHT) is True and noted.get("inode") == _stamp(blob)["inode"]

    def forget(self, blob: Path) -> None:
        self._path(blob).unlink(missing_ok=True)

    def _path(self, blob: Path) -> Path:
        return self._folder / f"{blob.parent.parent.name}--{blob.name}.json"


def _stamp(blob: Path) -> dict[str, object]:
    figures = blob.stat()
    return {"path": str(blob), "size": figures.st_size, "mtime_ns": figures.st_mtime_ns, "inode": figures.st_ino}
