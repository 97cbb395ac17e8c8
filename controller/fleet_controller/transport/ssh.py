"""Transport `ssh`: one asyncssh connection a host, over which the agent's unix socket is reached."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress

import asyncssh

from fleet_controller.transport.errors import HostUnreachable
from fleet_controller.transport.link import SCRIPT_TIMEOUT_SECONDS, ScriptResult, unpack_command
from fleet_controller.transport.ssh_login import log_in
from fleet_inventory.hosts import Host

PUSH_CHUNK_BYTES = 256 * 1024
PUSH_TIMEOUT_SECONDS = 900.0


async def connect(host: Host) -> SshLink:
    """A link to a host, through its jump hosts. Raises what log_in raises."""
    return SshLink(host.name, await log_in(host))


class SshLink:
    """A HostLink over one SSH connection (and those to its jump hosts)."""

    def __init__(self, host: str, connections: list[asyncssh.SSHClientConnection]) -> None:
        self.host = host
        self._connections = connections
        self._connection = connections[-1]
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._forwards: dict[str, str] = {}
        self._closed = False
        self._watcher = asyncio.ensure_future(self._watch())

    @property
    def closed(self) -> bool:
        return self._closed

    async def _watch(self) -> None:
        with suppress(Exception):
            await self._connection.wait_closed()
        self._closed = True
        self._remove_folder()
        for jump in self._connections[:-1]:  # nobody may ever ask for this host again, and so close them
            jump.close()

    async def run_script(
        self,
        script: str,
        timeout_seconds: float = SCRIPT_TIMEOUT_SECONDS,
        on_line: Callable[[str], None] | None = None,
    ) -> ScriptResult:
        try:
            async with asyncio.timeout(timeout_seconds):
                async with self._connection.create_process("exec /bin/sh -s", errors="replace") as process:
                    return await _converse(process, script, on_line)
        except TimeoutError:
            message = f"a script did not end within {timeout_seconds:.0f} s"
            raise HostUnreachable(self.host, message, "", "script-timeout") from None
        except (OSError, asyncssh.Error) as error:
            raise self._lost(error) from None

    async def unpack(self, archive: bytes, folder: str, on_progress: Callable[[int], None] | None = None) -> None:
        try:
            async with asyncio.timeout(PUSH_TIMEOUT_SECONDS):
                async with self._connection.create_process(unpack_command(folder), encoding=None) as process:
                    for start in range(0, len(archive), PUSH_CHUNK_BYTES):
                        chunk = archive[start : start + PUSH_CHUNK_BYTES]
                        process.stdin.write(chunk)
                        await process.stdin.drain()
                        if on_progress:
                            on_progress(start + len(chunk))
                    process.stdin.write_eof()
                    errors = await process.stderr.read()
                    completed = await process.wait(check=False)
        except (OSError, asyncssh.Error, TimeoutError) as error:
            raise self._lost(error) from None
        if completed.exit_status != 0:
            reason = errors.decode(errors="replace").strip()
            raise HostUnreachable(self.host, f"cannot unpack into {folder}: {reason}", "", "push-failed")

    async def forward(self, socket_path: str) -> str:
        if socket_path not in self._forwards:
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="fleet-", dir=_socket_folder())
            local = f"{self._folder.name}/{len(self._forwards)}.sock"
            try:
                await self._connection.forward_local_path(local, socket_path)
            except (OSError, asyncssh.Error) as error:
                raise self._lost(error) from None
            self._forwards[socket_path] = local
        return self._forwards[socket_path]

    async def close(self) -> None:
        for connection in reversed(self._connections):
            connection.close()
        with suppress(Exception):
            async with asyncio.timeout(2):
                await self._connection.wait_closed()
        for connection in self._connections:
            connection.abort()
        self._watcher.cancel()
        self._closed = True
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder:
            self._folder.cleanup()
            self._folder = None

    def _lost(self, error: Exception) -> HostUnreachable:
        return HostUnreachable(
            self.host, f"the connection was lost: {error or type(error).__name__}", "run the command again; it resumes"
        )


async def _converse(
    process: asyncssh.SSHClientProcess[str], script: str, on_line: Callable[[str], None] | None
) -> ScriptResult:
    process.stdin.write(script)
    process.stdin.write_eof()

    async def read_lines() -> str:
        lines: list[str] = []
        async for line in process.stdout:
            lines.append(line)
            if on_line:
                on_line(line.rstrip("\n"))
        return "".join(lines)

    output, errors = await asyncio.gather(read_lines(), process.stderr.read())
    completed = await process.wait(check=False)
    status = completed.exit_status
    return ScriptResult(-1 if status is None else status, output, errors)


def _socket_folder() -> str | None:
    """XDG_RUNTIME_DIR keeps socket paths short and private; else the system's temporary folder."""
    folder = os.environ.get("XDG_RUNTIME_DIR", "")
    if folder and len(folder) < 60 and os.access(folder, os.W_OK):
        return folder
    return "/tmp" if os.access("/tmp", os.W_OK) else None
