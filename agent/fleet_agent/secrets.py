"""Secrets of this host: one file of mode 0600 each. They are put and used by name; no call ever tells one."""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fleet_agent.layout import Layout
from fleet_agent.private_file import TEMPORARY, make_private_folder, write_private
from fleet_agent.problem import ProblemError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_LONGEST_BYTES = 16 * 1024
# A shorter one is guessed in no time, and could not be told from ordinary words in what a program prints.
SHORTEST_BYTES = 8
_CONFIGURATION = ".yaml"


@dataclass(frozen=True)
class SecretStore:
    """The folder `secrets` of this machine, of mode 0700."""

    folder: Path

    @classmethod
    def of(cls, layout: Layout) -> "SecretStore":
        return cls(layout.machine_dir / "secrets")

    def path(self, name: str) -> Path:
        """Where the secret lies, whether or not it is there. Raises ProblemError for a name that breaks the rule."""
        if not _NAME.match(name) or name.endswith(_CONFIGURATION):
            raise ProblemError(
                "bad-secret-name", f"secret name {name!r} is no plain name", "correct the request", "INVALID_ARGUMENT"
            )
        return self.folder / name

    def put(self, name: str, value: bytes) -> bool:
        """Keeps the secret; False where exactly it was there. Raises ProblemError for one that is no single line."""
        path = self.path(name)
        line = value.strip()
        if not line or len(line) > _LONGEST_BYTES or b"\n" in line or b"\0" in line:
            raise ProblemError(
                "bad-secret", f"the secret {name} is empty, too long or more than one line", "", "INVALID_ARGUMENT"
            )
        if self._present(path) == line:
            self.folder.chmod(0o700)
            path.chmod(0o600)
            return False
        self._write(path, line)
        return True

    def read(self, name: str) -> str:
        """The secret itself, for a process that is about to start. Raises ProblemError where it is not there."""
        value = self._present(self.path(name))
        if value is None:
            raise ProblemError("no-secret", f"the secret {name} is not on this host", "deploy again: it is put there")
        return value.decode()

    def remove(self, name: str) -> bool:
        """False where it was not there."""
        return _unlinked(self.path(name))

    def values(self) -> Iterator[bytes]:
        """Every secret, to be blotted out of what programs print."""
        for path in sorted(self.folder.glob("*")):
            if not path.name.endswith((_CONFIGURATION, TEMPORARY)):
                with contextlib.suppress(OSError):
                    yield path.read_bytes().strip()

    def write_configuration(self, service: str, key: str, value: str) -> Path:
        """`<service>.yaml` with the one line `<key>: "<value>"`; a JSON string is a YAML string, whatever is in it."""
        path = self.folder / f"{service}{_CONFIGURATION}"
        line = f"{key}: {json.dumps(value)}\n".encode()
        if self._present(path) != line.strip():
            self._write(path, line)
        return path

    def remove_configuration(self, service: str) -> bool:
        return _unlinked(self.folder / f"{service}{_CONFIGURATION}")

    def _write(self, path: Path, content: bytes) -> None:
        """Atomic, and at no moment open to others."""
        make_private_folder(self.folder)
        write_private(path, content)

    @staticmethod
    def _present(path: Path) -> bytes | None:
        try:
            return path.read_bytes().strip()
        except FileNotFoundError:
            return None


def _unlinked(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True
