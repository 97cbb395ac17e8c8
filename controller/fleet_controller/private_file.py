"""Files of mode 0600 that appear whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path


def write_private(path: Path, content: bytes) -> None:
    """Replaces the file; its folder is there."""
    beside = _draft(path, content)
    beside.replace(path)


def write_private_once(path: Path, content: bytes) -> bytes:
    """Writes the file where there is none; gives what is in it: of two writers the first wins, and both read that."""
    beside = _draft(path, content)
    try:
        with suppress(FileExistsError):
            os.link(beside, path)
    finally:
        beside.unlink()
    return path.read_bytes()


def _draft(path: Path, content: bytes) -> Path:
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    beside.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(beside, flags, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return beside
