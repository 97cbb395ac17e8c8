"""A link reaches one host: it runs scripts there, unpacks files there and gives a path to the agent's socket.

Two kinds exist: ssh.SshLink and local.LocalLink. Scripts travel on standard input of /bin/sh, so neither the
user's login shell (fish, tcsh) nor the process list ever sees them.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

SCRIPT_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class ScriptResult:
    exit_status: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.exit_status == 0

    def tail(self, lines: int = 12) -> str:
        """The last lines of what it printed, for a message."""
        return "\n".join((self.stderr or self.stdout).strip().splitlines()[-lines:])


class HostLink(Protocol):
    """Every method raises HostUnreachable when the link breaks."""

    host: str

    @property
    def closed(self) -> bool: ...

    async def run_script(
        self,
        script: str,
        timeout_seconds: float = SCRIPT_TIMEOUT_SECONDS,
        on_line: Callable[[str], None] | None = None,
    ) -> ScriptResult:
        """Runs a POSIX script with /bin/sh; `on_line` sees each line of its standard output as it comes."""
        ...

    async def unpack(self, archive: bytes, folder: str, on_progress: Callable[[int], None] | None = None) -> None:
        """Unpacks a tar archive into an absolute folder, made with mode 0700 where missing. Progress is in bytes."""
        ...

    async def forward(self, socket_path: str) -> str:
        """A unix socket on this machine that leads to `socket_path` on the host."""
        ...

    async def close(self) -> None: ...


def exports(variables: Mapping[str, str]) -> str:
    """Lines that export variables at the top of a script; they never become an argument of a process."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items() if value)


def unpack_command(folder: str) -> str:
    """The command that reads a tar archive on standard input. It means the same to sh, fish and csh.

    A backslash inside single quotes is the one thing that those shells read differently; no folder of ours has one.
    """
    if "\\" in folder or "\n" in folder or "!" in folder:
        raise ValueError(f"cannot use the folder {folder!r}: it has a backslash, line end or exclamation mark")
    quoted = shlex.quote(folder)
    return "/bin/sh -c " + shlex.quote(f"umask 077; mkdir -p {quoted} && tar -xf - -C {quoted}")
