"""A port of this machine's network on a host's loopback: an OpenSSH child with -R, for as long as somebody needs it."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress

from fleet_controller.forwarding.ssh_command import reverse_command
from fleet_controller.operations.problems import OperationError
from fleet_inventory.hosts import Host

OPEN_SECONDS = 20.0
END_SECONDS = 3.0
# "Allocated port 43521 for remote forward to 127.0.0.1:40123", on stderr at LogLevel INFO.
_ALLOCATED = re.compile(r"Allocated port (\d+) for remote forward")


class ReverseForward:
    """`port` on the host's 127.0.0.1 leads to where it was opened for."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.port = port
        self._process = process
        self._reader = asyncio.create_task(_drain(process))

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def close(self) -> None:
        self._reader.cancel()
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


async def open_reverse(host: Host, address: str, port: int) -> ReverseForward:
    """Brings `address`:`port`, as this machine dials it, to a port of the host's loopback. Raises OperationError."""
    process = await asyncio.create_subprocess_exec(
        *reverse_command(host, address, port),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stderr is not None
    said = ""
    with suppress(TimeoutError):
        async with asyncio.timeout(OPEN_SECONDS):
            while line := await process.stderr.readline():
                said = line.decode(errors="replace").strip() or said
                found = _ALLOCATED.search(said)
                if found:
                    return ReverseForward(process, int(found[1]))
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()
    message = f"ssh opens no port on {host.name}: {said or 'it did not answer in time'}"
    raise OperationError("no-way", message, f"AllowTcpForwarding in {host.name}'s sshd_config must be yes or remote")


async def _drain(process: asyncio.subprocess.Process) -> None:
    """So that ssh never waits for somebody to read what it says."""
    assert process.stderr is not None
    while await process.stderr.readline():
        pass
