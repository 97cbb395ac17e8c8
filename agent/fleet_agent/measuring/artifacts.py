"""Size and sha256 of what is measured, so that a figure says of exactly which file it is."""

import hashlib
import json
from pathlib import Path
from typing import Any

from fleet_agent.jobs.errors import JobProblem, Stopped
from fleet_agent.jobs.store import read_json, write_json
from fleet_agent.steps.context import StepContext

BLOCK_BYTES = 8 << 20
KEPT_HASHES = 500


def measured_artifacts(paths: tuple[str, ...], context: StepContext) -> list[dict[str, Any]]:
    """One entry a path. A hash that was taken once is kept with the file's size and time, since 100 GB take minutes.

    Raises JobProblem "file-missing", and Stopped once cancelled.
    """
    kept_path = context.layout.machine_dir / "hashes.json"
    kept = read_json(kept_path)
    before = json.dumps(kept)
    found = [_measured(Path(path), kept, context) for path in paths]
    if json.dumps(kept) != before:
        write_json(kept_path, dict(list(kept.items())[-KEPT_HASHES:]))
    return found


def _measured(path: Path, kept: dict[str, Any], context: StepContext) -> dict[str, Any]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        hashes = [(file.relative_to(path).as_posix(), _hash(file, kept, context)) for file in files]
        text = "".join(f"{digest}  {name}\n" for name, digest in hashes)
        total = sum(file.stat().st_size for file in files)
        return {"path": str(path), "size_bytes": total, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    if not path.is_file():
        raise JobProblem("file-missing", f"{path} is not there", "deploy or pull the model again")
    return {"path": str(path), "size_bytes": path.stat().st_size, "sha256": _hash(path, kept, context)}


def _hash(path: Path, kept: dict[str, Any], context: StepContext) -> str:
    # Hugging Face's cache names a large file by its sha256.
    blob = path.resolve().name
    if len(blob) == 64 and path.is_symlink() and all(digit in "0123456789abcdef" for digit in blob):
        return blob
    status = path.stat()
    stamp = f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"
    entry = kept.get(str(path))
    if isinstance(entry, dict) and entry.get("stamp") == stamp:
        return str(entry["sha256"])
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            if context.cancelled.is_set():
                raise Stopped
            digest.update(block)
            done += len(block)
            context.progress(done, status.st_size, "bytes", f"hash of {path.name}")
    kept[str(path)] = {"stamp": stamp, "sha256": digest.hexdigest()}
    return digest.hexdigest()
