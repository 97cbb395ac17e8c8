"""What probes read with: files and the short output of programs."""

import functools
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path


class ReadingError(Exception):
    """A program or file that a probe needs gave nothing usable; the text says which and why."""


def run_text(argv: Sequence[str | Path], limit_seconds: float = 3.0, check: bool = True) -> str:
    """What the program printed, stdout before stderr. Raises ReadingError where it is missing, slow or (with `check`)
    fails."""
    command = [str(part) for part in argv]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_seconds, check=False,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ReadingError(f"{command[0]}: {error}") from error
    output = (done.stdout + done.stderr).decode("utf-8", "replace")
    if check and done.returncode != 0:
        last = output.strip().splitlines()[-1:] or ["no output"]
        raise ReadingError(f"{command[0]} ended with {done.returncode}: {last[0]}")
    return output


def read_text(path: str | Path) -> str | None:
    """The file's text; None where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def version_text(program: Path, *arguments: str, limit_seconds: float = 3.0) -> str | None:
    """What `program arguments` printed, remembered for as long as the file stays the same; None where it failed."""
    try:
        state = program.resolve().stat()
    except OSError:
        return None
    return _version_text(str(program), arguments, limit_seconds, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=64)
def _version_text(
    program: str, arguments: tuple[str, ...], limit_seconds: float, mtime_ns: int, size_bytes: int
) -> str | None:
    try:
        return run_text([program, *arguments], limit_seconds)
    except ReadingError:
        return None
