"""A port of this machine's network on a host's loopback: an OpenSSH child with -R, for as long as somebody needs it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from contextlib import suppress

from fleet_controller.forwarding.ssh_command import reverse_command
from fleet_controller.operations.problems import OperationError
from fleet_inventory.hosts import Host

OPEN_SECONDS = 20.0
REOPEN_SECONDS = 1.0
END_SECONDS = 3.0
# ssh ends when standard input does, and that is a pipe which nobody but this process holds: so it ends with it, also
# when it is killed, on Linux and macOS alike. Whichever ends first, ssh or the wait for the pipe, takes the other one
# with it.
_TIED = """
exec 3<&0
"$@" </dev/null 3<&- &
ssh=$!
{ read -r line; kill "$ssh"; } <&3 >/dev/null 2>&1 &
watch=$!
wait "$ssh"
result=$?
kill "$watch" 2>/dev/null
exit "$result"
"""
# "Allocated port 43521 for remote forward to 127.0.0.1:40123", on stderr at LogLevel INFO.
_ALLOCATED = re.compile(r"Allocated port (\d+) for remote forward")


class ReverseForward:
    """`port` on the host's 127.0.0.1 leads to `address`:`target` as this machine dials it. A child that ends, as with
    its link, is followed by another one at the same port.
    """

    def __init__(self, host: Host, address: str, target: int, process: asyncio.subprocess.Process, port: int) -> None:
        self.port = port
        self._host = host
        self._address = address
        self._target = target
        self._process = process
        self._closing = asyncio.Event()
        self._keeper = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        while not self._closing.is_set():
            await _ended(self._process)
            with suppress(TimeoutError):
                async with asyncio.timeout(REOPEN_SECONDS):
                    await self._closing.wait()
            if not self._closing.is_set():
                self._process = await _start(self._host, self._address, self._target, self.port)
        if self._process.returncode is None:
            await _end(self._process)

    async def close(self) -> None:
        self._closing.set()
        await _end(self._process)
        await self._keeper


async def open_reverse(host: Host, address: str, port: int) -> ReverseForward:
    """Brings `address`:`port`, as this machine dials it, to a free port of the host's loopback.

    Raises OperationError.
    """
    process = await _start(host, address, port, 0)
    assert process.stderr is not None
    said = ""
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(OPEN_SECONDS):
                while line := await process.stderr.readline():
                    said = line.decode(errors="replace").strip() or said
                    found = _ALLOCATED.search(said)
                    if found:
                        return ReverseForward(host, address, port, process, int(found[1]))
    except asyncio.CancelledError:
        await _end(process)
        raise
    await _end(process)
    message = f"ssh opens no port on {host.name}: {said or 'it did not answer in time'}"
    raise OperationError("no-way", message, f"AllowTcpForwarding in {host.name}'s sshd_config must be yes or remote")


async def _start(host: Host, address: str, target: int, port: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", _TIED, "sh", *reverse_command(host, address, target, port)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )


async def _ended(process: asyncio.subprocess.Process) -> None:
    """What it says is read all along, so that ssh never waits for a reader."""
    assert process.stderr is not None
    while await process.stderr.readline():
        pass
    await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(END_SECONDS):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
