"""Small pure helpers about what programs print and where they write."""

import os
from collections.abc import Iterator
from pathlib import Path

LINE_LIMIT_BYTES = 16 << 10


class LineSplitter:
    """Bytes in, lines out. A carriage return ends a line, too: that is how progress bars redraw."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, block: bytes) -> Iterator[str]:
        *lines, self._rest = (self._rest + block).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if len(self._rest) > LINE_LIMIT_BYTES:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            if line.strip():
                yield line.decode(errors="replace")

    def end(self) -> Iterator[str]:
        rest, self._rest = self._rest, b""
        if rest.strip():
            yield rest.decode(errors="replace")


def existing_parent(path: Path) -> Path:
    """The nearest folder of `path` that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def free_bytes(path: Path) -> int | None:
    """Bytes that an ordinary user can still write at `path` (which need not exist yet); None if unknown."""
    try:
        figures = os.statvfs(existing_parent(path))
    except OSError:
        return None
    return figures.f_bavail * figures.f_frsize
