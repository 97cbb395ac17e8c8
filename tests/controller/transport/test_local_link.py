"""Scripts on this machine: nothing of them goes on when their caller gives up."""

import asyncio
import os
from pathlib import Path

import pytest

from fleet_controller.transport.errors import HostUnreachable
from fleet_controller.transport.local import LocalLink


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return (
        Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z" if Path("/proc").exists() else True
    )


async def test_a_script_over_its_limit_ends_with_what_it_started(tmp_path: Path) -> None:
    started: list[str] = []
    script = "sleep 600 &\necho $!\nwait\n"
    with pytest.raises(HostUnreachable, match="did not end within"):
        await LocalLink("here").run_script(script, timeout_seconds=1.0, on_line=started.append)
    assert started
    for _ in range(100):
        if not runs(int(started[0])):
            break
        await asyncio.sleep(0.05)
    assert not runs(int(started[0]))
