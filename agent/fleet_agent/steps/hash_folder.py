"""The files below a folder of this host, with the hashes that a hub publishes, for taking it into the lab.

Result: {"commit": noted by `hf download --local-dir` or "", "files": [{"path", "size_bytes", "sha256", "git_blob_id",
"noted"}]}; noted is the hash that the hub gave then, "" where nobody noted any.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fleet_agent.artifacts.cache import COMMIT, HASH
from fleet_agent.jobs.errors import JobProblem, SpecProblem, Stopped
from fleet_agent.jobs.model import HashFolderStep
from fleet_agent.steps.context import StepContext

BLOCK_BYTES = 1 << 20
# Where `hf download --local-dir` keeps, for each file, three lines: commit, hash of the hub, time.
NOTES_FOLDER = Path(".cache/huggingface/download")
MOST_FILES = 1 << 14


def check(step: HashFolderStep) -> None:
    if not step.path.startswith("/"):
        raise SpecProblem(f"{step.path!r} is no absolute path on the host")


async def run(step: HashFolderStep, context: StepContext) -> dict[str, Any]:
    return await context.in_thread(_hash_all, Path(step.path), context)


def _hash_all(folder: Path, context: StepContext) -> dict[str, Any]:
    if not folder.is_dir():
        raise JobProblem("no-such-folder", f"{folder} is no folder on this host", "correct the path")
    paths = sorted(model_files(folder))
    if not paths or len(paths) > MOST_FILES:
        raise JobProblem("no-model", f"{folder} holds {len(paths)} files", "name the folder with one model's files")
    total, done = sum((folder / path).stat().st_size for path in paths), 0

    def on_bytes(count: int) -> None:
        nonlocal done
        if context.cancelled.is_set():
            raise Stopped
        done += count
        context.progress(done, total, "bytes", "")

    notes = {path: noted(folder, path) for path in paths}
    files = [
        {"path": path.as_posix(), "noted": notes[path][1], **both_hashes(folder / path, on_bytes)} for path in paths
    ]
    commits = {commit for commit, _ in notes.values() if commit}
    return {"commit": commits.pop() if len(commits) == 1 else "", "files": files}


def model_files(folder: Path) -> Iterator[Path]:
    """Relative paths of all files, but for hidden ones and what lies in hidden folders. Links are followed."""
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place) / name
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(folder)


def both_hashes(path: Path, on_bytes: Callable[[int], None]) -> dict[str, Any]:
    size = path.stat().st_size
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            sha256.update(block)
            git.update(block)
            on_bytes(len(block))
    return {"size_bytes": size, "sha256": sha256.hexdigest(), "git_blob_id": git.hexdigest()}


def noted(folder: Path, path: Path) -> tuple[str, str]:
    """(commit, hash) that `hf download` noted for a file; empty where it noted none."""
    place = folder / NOTES_FOLDER / path.with_name(path.name + ".metadata")
    try:
        lines = place.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return "", ""
    commit, found = ([line.strip() for line in lines] + ["", ""])[:2]
    return commit if COMMIT.fullmatch(commit) else "", found if HASH.fullmatch(found) else ""
