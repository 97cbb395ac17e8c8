"""A server's log: stdout and stderr in one file, rotated by size, read across rotations.

The server holds the file open in append mode for as long as it lives, longer than the agent. So rotation copies the
file to <name>.log.1 and then cuts it to nothing: the server goes on writing at the new end. What it writes in the
microseconds between the last read of the copy and the cut is lost; nothing else is.

A server may print its own API key (SGLang prints its settings). It writes to the file itself, so secrets are blotted
out where they lie, with as many asterisks: at each look at the server, and before anything of the log is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from fleet_agent.redaction import Redactor

_BLOCK_BYTES = 64 * 1024
_FOLLOW_SECONDS = 0.2
_SCRUB_BYTES = 1 << 20


@dataclass(frozen=True)
class LogLimits:
    """A log may grow to largest_bytes; kept_files older ones stay beside it."""

    largest_bytes: int = 10 * 1000 * 1000
    kept_files: int = 3


class ServiceLog:
    """The log at `path` and its older parts <path>.1 (newest), <path>.2, ..."""

    def __init__(self, path: Path, limits: LogLimits = LogLimits(), redactor: Redactor | None = None) -> None:
        self.path = path
        self._limits = limits
        self._redactor = redactor
        self._scrubbed_bytes = 0

    def open_for_append(self) -> int:
        """A descriptor for a server's stdout and stderr; the caller closes it. Raises OSError."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def note(self, text: str) -> None:
        """Adds a line of the agent's own. Raises OSError."""
        descriptor = self.open_for_append()
        try:
            os.write(descriptor, f"[fleet] {text}\n".encode())
        finally:
            os.close(descriptor)

    def size_bytes(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def rotate_if_large(self) -> bool:
        """Rotates a log over its limit, with its secrets gone. Raises OSError (a full disk); then nothing is lost."""
        self.scrub()
        if self.size_bytes() <= self._limits.largest_bytes:
            return False
        copy = self.path.with_name(self.path.name + ".new")
        with self.path.open("r+b", buffering=0) as source, copy.open("wb", buffering=0) as target:
            os.fchmod(target.fileno(), 0o600)
            while block := source.read(_BLOCK_BYTES):
                target.write(block)
            self._shift()
            copy.replace(self._part(1))
            while block := source.read(_BLOCK_BYTES):  # what came while the files were renamed
                target.write(block)
            source.truncate(0)
        if self._redactor is not None:
            _blot_out(self._part(1), 0, self._redactor)
        self._scrubbed_bytes = 0
        return True

    def scrub(self) -> None:
        """Blots out this host's secrets in what was written since the last time. Raises OSError."""
        size_bytes = self.size_bytes()
        if self._redactor is None or size_bytes == self._scrubbed_bytes:
            return
        start = self._scrubbed_bytes if size_bytes > self._scrubbed_bytes else 0
        self._scrubbed_bytes = _blot_out(self.path, start, self._redactor)

    def _shift(self) -> None:
        for number in range(self._limits.kept_files, 1, -1):
            if self._part(number - 1).exists():
                self._part(number - 1).replace(self._part(number))

    def _part(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path

    def beside(self) -> ServiceLog:
        """The log of a server that is started beside this one's; no service can have such a name."""
        path = self.path.with_name(f"{self.path.stem}~next{self.path.suffix}")
        return ServiceLog(path, self._limits, self._redactor)

    def take(self, other: ServiceLog) -> None:
        """`other` is the newest part from now on, and goes on being written to. Raises OSError."""
        if not other.path.exists():
            return
        self.scrub()
        self._shift()
        if self.path.exists():
            self.path.replace(self._part(1))
        other.path.replace(self.path)
        other.remove()
        self._scrubbed_bytes = 0

    def remove(self) -> None:
        for number in range(self._limits.kept_files + 1):
            self._part(number).unlink(missing_ok=True)

    def tail(self, lines: int, end: int | None = None) -> bytes:
        """The last `lines` lines, across rotated parts; 0 = everything kept. `end` cuts the newest file there."""
        self.scrub()
        found = b""
        for number in range(self._limits.kept_files + 1):
            try:
                found = _read_back(self._part(number), lines, found, end if number == 0 else None)
            except FileNotFoundError:
                continue
            if lines and _line_count(found) > lines:
                break
        return _last_lines(found, lines) if lines else found

    async def read(self, lines: int, follow: bool) -> AsyncIterator[bytes]:
        """The tail in pieces, and with `follow` everything that is added, over rotations and restarts, without end."""
        position, newest = self.size_bytes(), _inode(self._part(1))
        if lines:
            if tail := self.tail(lines, end=position):
                yield tail
        else:
            position = 0
            for block in self._older_blocks():
                yield block
        while True:
            data, position, newest = self._read_on(position, newest)
            if data:
                yield data
            elif follow:
                await asyncio.sleep(_FOLLOW_SECONDS)
            else:
                return

    def _older_blocks(self) -> Iterator[bytes]:
        """The rotated parts, oldest first; all are opened before the first is read: rotation meanwhile is harmless."""
        with contextlib.ExitStack() as stack:
            files = []
            for number in range(self._limits.kept_files, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    files.append(stack.enter_context(self._part(number).open("rb")))
            for file in files:
                while block := file.read(_BLOCK_BYTES):
                    yield block

    def _read_on(self, position: int, newest: int | None) -> tuple[bytes, int, int | None]:
        """What was added since; reads the parts that the file became meanwhile from where we were."""
        self.scrub()
        parts = [self._part(number) for number in range(1, self._limits.kept_files + 1)]
        inodes = [_inode(part) for part in parts]
        data = b""
        if inodes[0] != newest:
            count = inodes.index(newest) if newest in inodes and newest is not None else _present(inodes)
            for part in reversed(parts[:count]):
                data += _read_from(part, position)
                position = 0
        elif self.size_bytes() < position:
            position = 0  # somebody else cut it
        fresh = _read_from(self.path, position)
        return data + fresh, position + len(fresh), inodes[0]


def _blot_out(path: Path, start: int, redactor: Redactor) -> int:
    """Overwrites the secrets from `start` on, and one that began before it; returns how far the file was read.

    The server appends meanwhile, which never moves what is there.
    """
    values = redactor.values()
    try:
        with path.open("r+b", buffering=0) as file:
            if not values:
                return file.seek(0, os.SEEK_END)
            overlap = len(values[0]) - 1
            position = max(0, start - overlap)
            file.seek(position)
            while data := file.read(_SCRUB_BYTES):
                for found, length in redactor.occurrences(data):
                    os.pwrite(file.fileno(), b"*" * length, position + found)
                end = position + len(data)
                if len(data) <= overlap or end >= os.fstat(file.fileno()).st_size:
                    return end
                position = end - overlap
                file.seek(position)
            return position
    except FileNotFoundError:
        return 0


def _present(inodes: list[int | None]) -> int:
    return sum(1 for inode in inodes if inode is not None)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _read_from(path: Path, position: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(position)
            return file.read()
    except FileNotFoundError:
        return b""


def _read_back(path: Path, lines: int, after: bytes, end: int | None) -> bytes:
    """Blocks of the file from its end, put before `after`, until more than `lines` lines are there; 0 = all of it."""
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        position = position if end is None else min(position, end)
        blocks = [after]
        count = _line_count(after)
        while position > 0 and (not lines or count <= lines):
            start = max(0, position - _BLOCK_BYTES)
            file.seek(start)
            blocks.insert(0, file.read(position - start))
            count += blocks[0].count(b"\n")
            position = start
        return b"".join(blocks)


def _line_count(data: bytes) -> int:
    return data.count(b"\n") + (1 if data and not data.endswith(b"\n") else 0)


def _last_lines(data: bytes, lines: int) -> bytes:
    """Lines end with \\n alone: a progress bar's \\r stays inside its line."""
    parts = data.split(b"\n")
    return b"\n".join(parts[-lines - 1 :] if parts[-1] == b"" else parts[-lines:])
