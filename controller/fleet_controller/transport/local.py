"""Transport `local`: the agent runs on this machine, and its unix socket is opened directly.

A machine can stand for several hosts (`fleet demo`, tests): each such host has an `agent_root` of its own, and its
machine id is derived from that folder. It reaches the agent as FLEET_MACHINE_ID, set by bring-up. A local host
without `agent_root` is this machine itself, under its own machine id.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fleet_controller.transport.errors import HostUnreachable
from fleet_controller.transport.link import SCRIPT_TIMEOUT_SECONDS, ScriptResult
from fleet_inventory.hosts import Host

# What this process's own Python environment would leak into a script's Python.
_OWN_PYTHON_VARIABLES = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "UV_PROJECT_ENVIRONMENT")


def local_machine_id(host: Host) -> str:
    """32 hex digits for a local host with its own agent root; empty where the machine's own id counts."""
    if host.transport != "local" or not host.agent_root:
        return ""
    root = Path(host.agent_root).expanduser().absolute()
    return hashlib.sha256(f"fleet-local-host:{root}".encode()).hexdigest()[:32]


class LocalLink:
    """A HostLink to this machine."""

    def __init__(self, host: str) -> None:
        self.host = host

    @property
    def closed(self) -> bool:
        return False

    async def run_script(
        self,
        script: str,
        timeout_seconds: float = SCRIPT_TIMEOUT_SECONDS,
        on_line: Callable[[str], None] | None = None,
    ) -> ScriptResult:
        process = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-s",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name not in _OWN_PYTHON_VARIABLES},
            start_new_session=True,  # so that what the script started can be ended with it
        )
        try:
            async with asyncio.timeout(timeout_seconds):
                return await _converse(process, script, on_line)
        except TimeoutError:
            raise HostUnreachable(
                self.host, f"a script did not end within {timeout_seconds:.0f} s", "", "script-timeout"
            ) from None
        finally:
            await _end(process)

    async def unpack(self, archive: bytes, folder: str, on_progress: Callable[[int], None] | None = None) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True, mode=0o700)
        process = await asyncio.create_subprocess_exec(
            "tar", "-xf", "-", "-C", folder,
            stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            _, stderr = await process.communicate(archive)
        finally:
            await _end(process)
        if process.returncode != 0:
            raise HostUnreachable(
                self.host, f"tar failed: {stderr.decode(errors='replace').strip()}", "", "push-failed"
            )
        if on_progress:
            on_progress(len(archive))

    async def forward(self, socket_path: str) -> str:
        return socket_path

    async def close(self) -> None:
        return None


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ends a script that still runs, and what it started in the foreground; an agent leads a session of its own."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _converse(
    process: asyncio.subprocess.Process, script: str, on_line: Callable[[str], None] | None
) -> ScriptResult:
    assert process.stdin and process.stdout and process.stderr
    stdin, stdout, stderr = process.stdin, process.stdout, process.stderr

    async def feed() -> None:
        try:
            stdin.write(script.encode())
            await stdin.drain()
            stdin.close()
        except (BrokenPipeError, ConnectionResetError):
            pass  # the script ended before it was read to its end; its exit status tells the rest

    async def read_lines() -> str:
        lines: list[str] = []
        async for raw in stdout:
            line = raw.decode(errors="replace")
            lines.append(line)
            if on_line:
                on_line(line.rstrip("\n"))
        return "".join(lines)

    _, output, errors = await asyncio.gather(feed(), read_lines(), stderr.read())
    return ScriptResult(await process.wait(), output, errors.decode(errors="replace"))
