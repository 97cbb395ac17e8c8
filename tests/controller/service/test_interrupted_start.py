"""Ctrl-C while the controller inside a command starts: it is taken down, and leaves nothing to complain at the end."""

import asyncio
import contextlib
import socket
import tempfile
from pathlib import Path

import pytest

from fleet_controller.service.server import ControllerServer
from fleet_controller.settings import Settings


@pytest.mark.parametrize("steps", range(6))
async def test_a_start_that_is_interrupted_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    monkeypatch.setenv("FLEET_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("FLEET_CONFIG_DIR", str(tmp_path / "config"))
    with tempfile.TemporaryDirectory(prefix="ft-", dir="/tmp") as folder:  # a unix socket's path must be short
        path = Path(folder) / "c" / "controller.sock"
        server = ControllerServer(Settings.from_environment(), path, resident=False)
        start = asyncio.create_task(server.start())
        for _ in range(steps):
            await asyncio.sleep(0)
        start.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await start
        await server.stop()
        with socket.socket(socket.AF_UNIX) as client, pytest.raises(OSError, match=r"No such file|refused"):
            client.connect(str(path))
