"""A way to a host's loopback ends with the process that opened it, however that ends, and outlives its own ssh."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fleet_controller.forwarding.reverse import open_reverse
from fleet_controller.operations.problems import OperationError
from fleet_inventory.hosts import Host
from support.fleet_cli import eventually

HOST = Host(name="gpu1", address="gpu1")
OPENS = """#!/bin/sh
echo $$ >> "$SSH_PIDS"
echo "Allocated port 4711 for remote forward to 127.0.0.1:1" >&2
exec sleep 600
"""
REFUSES = '#!/bin/sh\necho "Warning: remote port forwarding failed for listen port 0" >&2\nexit 255\n'
OPENER = """
import asyncio
from fleet_controller.forwarding.reverse import open_reverse
from fleet_inventory.hosts import Host

async def main():
    way = await open_reverse(Host(name="gpu1", address="gpu1"), "127.0.0.1", 1)
    print(way.port, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in place of ssh; it notes its pids in the file beside it."""
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(OPENS)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SSH_PIDS", str(program.with_name("pids")))
    return program


def pids(ssh: Path) -> list[int]:
    return [int(line) for line in ssh.with_name("pids").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ssh_ends_with_a_controller_that_is_killed(ssh: Path, number: signal.Signals) -> None:
    opener = subprocess.Popen([sys.executable, "-c", OPENER], stdout=subprocess.PIPE, text=True)
    with opener:
        assert opener.stdout is not None
        assert opener.stdout.readline() == "4711\n"
        (pid,) = pids(ssh)
        assert is_alive(pid)
        opener.send_signal(number)
        opener.wait()
    eventually(lambda: not is_alive(pid), "its ssh has ended")


async def test_one_that_is_closed_leaves_nothing(ssh: Path) -> None:
    way = await open_reverse(HOST, "127.0.0.1", 1)
    await way.close()
    assert not any(is_alive(pid) for pid in pids(ssh))


async def test_a_killed_ssh_is_followed_by_another(ssh: Path) -> None:
    way = await open_reverse(HOST, "127.0.0.1", 1)
    try:
        os.kill(pids(ssh)[0], signal.SIGKILL)
        await asyncio.to_thread(eventually, lambda: len(pids(ssh)) > 1, "another ssh runs")
        assert way.port == 4711
    finally:
        await way.close()
    assert not any(is_alive(pid) for pid in pids(ssh))


async def test_a_host_that_forwards_nothing_says_so(ssh: Path) -> None:
    ssh.write_text(REFUSES)
    with pytest.raises(OperationError, match="opens no port on gpu1: Warning: remote port forwarding failed"):
        await open_reverse(HOST, "127.0.0.1", 1)
