"""A folder with a model's files on the controller's machine: what is in it. Blocking; callers use a thread.

It gives what the agent's step `hash_folder` gives for a folder of a host.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK_BYTES = 1 << 20
# Where `hf download --local-dir` keeps, for each file, three lines: commit, hash of the hub, time.
NOTES_FOLDER = Path(".cache/huggingface/download")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def hashed_folder(folder: Path) -> dict[str, Any]:
    """Raises OSError, and ValueError where there is no file."""
    if not folder.is_dir():
        raise ValueError("there is no such folder")
    paths = sorted(model_files(folder))
    if not paths:
        raise ValueError("it holds no file")
    notes = {path: noted(folder, path) for path in paths}
    files = [{"path": path.as_posix(), "noted": notes[path][1], **_both_hashes(folder / path)} for path in paths]
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


def noted(folder: Path, path: Path) -> tuple[str, str]:
    """(commit, hash) that `hf download` noted for a file; empty where it noted none."""
    place = folder / NOTES_FOLDER / path.with_name(path.name + ".metadata")
    try:
        lines = place.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return "", ""
    commit, found = ([line.strip() for line in lines] + ["", ""])[:2]
    return commit if _COMMIT.fullmatch(commit) else "", found if _HASH.fullmatch(found) else ""


def _both_hashes(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            sha256.update(block)
            git.update(block)
    return {"size_bytes": size, "sha256": sha256.hexdigest(), "git_blob_id": git.hexdigest()}
