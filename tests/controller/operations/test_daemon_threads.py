"""Blocking work in a daemon thread: its result, its error, and that nobody waits for what was cancelled."""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_controller.operations.threads import in_daemon_thread
from support.fleet_world import FleetWorld, fleet_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[FleetWorld]:
    with fleet_world(tmp_path) as made:
        yield made


async def test_the_result_and_the_error_come_back() -> None:
    assert await in_daemon_thread(max, 3, 7) == 7
    with pytest.raises(ValueError, match="invalid literal"):
        await in_daemon_thread(int, "x")


def test_a_loop_ends_while_the_work_still_blocks() -> None:
    reading, writing = os.pipe()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(in_daemon_thread(os.read, reading, 1), timeout=0.05)

    asyncio.run(give_up())  # would never return, were the thread joined
    os.write(writing, b"x")
    os.close(writing)


def test_ctrl_c_ends_a_plan_that_waits_for_a_silent_hub(world: FleetWorld) -> None:
    world.local_hosts("a")
    with socket.create_server(("127.0.0.1", 0)) as hub:
        hub.settimeout(30)
        environment = world.environment | {"HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}"}
        command = world.command("deploy", "--repo", "lab/tiny", "--hosts", "a", "--dry-run")
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            with hub.accept()[0]:  # it is asked, and never answers
                process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=8)  # the hub's own time limit is longer
        finally:
            process.kill()
    assert process.returncode == 130, errors
    assert b"Traceback" not in errors
