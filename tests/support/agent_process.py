"""A real agent process on a unix socket of its own, for tests of anything that talks to one."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from fleet_proto.v1 import agent_pb2_grpc

SERVE = (sys.executable, "-m", "fleet_agent", "serve")


@dataclass
class AgentProcess:
    process: "asyncio.subprocess.Process"
    environment: dict[str, str]
    socket_path: Path

    @contextlib.asynccontextmanager
    async def stub(self) -> AsyncIterator[Any]:
        async with grpc.aio.insecure_channel(f"unix:{self.socket_path}") as channel:
            yield agent_pb2_grpc.AgentStub(channel)

    def kill(self) -> None:
        """As `kill -9` would: nothing is cleaned up."""
        self.process.kill()

    async def terminate(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), 20)


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A private folder whose path leaves room for a socket's name: pytest's own folders may be too deep."""
    folder = Path(tempfile.mkdtemp(prefix="fl-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def agent_environment(
    home: Path, runtime_dir: Path, machine_id: str = "test-machine", extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment of an agent that touches nothing outside `home` and `runtime_dir`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLEET_", "HF_", "XDG_"))}
    return {
        **kept,
        "HOME": str(home),
        "FLEET_RUNTIME_DIR": str(runtime_dir),
        "FLEET_MACHINE_ID": machine_id,
        **(extra or {}),
    }


@contextlib.asynccontextmanager
async def running_agent(environment: Mapping[str, str], *argv: str) -> AsyncIterator[AgentProcess]:
    """Starts an agent (`argv` instead of the usual command, where given) and waits until it says that it serves."""
    process = await asyncio.create_subprocess_exec(*(argv or SERVE), env=dict(environment), stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        line = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
        if "serving on " not in line:
            rest = (await process.stderr.read()).decode()
            raise AssertionError(f"the agent did not start: {line}{rest}")
        drain = asyncio.ensure_future(process.stderr.read())
        yield AgentProcess(process, dict(environment), Path(line.split("serving on ", 1)[1].strip()))
        drain.cancel()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
