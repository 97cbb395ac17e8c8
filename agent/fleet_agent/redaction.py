"""Secrets of this host, blotted out of what programs print: a server that logs its own settings prints its key, too."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from fleet_agent.secrets import SHORTEST_BYTES, SecretStore

REPLACEMENT = "[secret]"

_Signature = tuple[tuple[str, int, int, int], ...]


class Redactor:
    """Knows the secrets as they are now; a secret that was replaced is forgotten. Shorter ones than 8 bytes would
    blot out ordinary words, so that they are left alone."""

    def __init__(self, store: SecretStore) -> None:
        self._store = store
        self._signature: _Signature = ()
        self._values: tuple[bytes, ...] = ()

    def values(self) -> tuple[bytes, ...]:
        """The secrets, and how JSON writes them; the longest first."""
        signature = self._seen()
        if signature != self._signature:
            self._values, self._signature = self._read(), signature
        return self._values

    def text(self, text: str) -> str:
        """`text` with every secret replaced."""
        for value in self.values():
            text = text.replace(value.decode(errors="replace"), REPLACEMENT)
        return text

    def occurrences(self, data: bytes) -> Iterator[tuple[int, int]]:
        """(start, length) of every secret in `data`."""
        for value in self.values():
            start = data.find(value)
            while start >= 0:
                yield start, len(value)
                start = data.find(value, start + len(value))

    def _seen(self) -> _Signature:
        """Changes with every put and removal: a put renames a new file into place."""
        found = []
        with contextlib.suppress(OSError), os.scandir(self._store.folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    found.append((entry.name, status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(sorted(found))

    def _read(self) -> tuple[bytes, ...]:
        found: set[bytes] = set()
        for value in self._store.values():
            if len(value) >= SHORTEST_BYTES:
                found |= {value, json.dumps(value.decode(errors="replace"))[1:-1].encode()}
        return tuple(sorted(found, key=lambda value: (-len(value), value)))


def redacted(value: Any, redact: Callable[[str], str]) -> Any:
    """The same with every text in it redacted; before it becomes JSON, which writes some texts differently."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: redacted(item, redact) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(redacted(item, redact) for item in value)
    return value
