"""What the relay's benchmark counts and refuses; its races need root and shaped links, and are run by hand."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.relay_content import COMMIT, REPOSITORY
from benchmarks.relay_disk import SHARE, DiskSpeed, file_system_of, link_rate_for, require_room
from benchmarks.relay_load import MODEL, Load, Uplink, check_copies, prepare
from benchmarks.relay_network import HEADER_BYTES, SentCount

SIZE = 3_000_000


@pytest.fixture
def load(tmp_path: Path) -> Load:
    return prepare(tmp_path / "load", SIZE, 1e6, 0.0, 0)


@pytest.fixture
def hub(load: Load, unused_tcp_port: int) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.range_server", str(load.source), "127.0.0.1", str(unused_tcp_port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield f"http://127.0.0.1:{unused_tcp_port}"
    finally:
        process.terminate()
        process.communicate()


def counted(hub: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{hub}/counted") as reply:
        found: dict[str, int] = json.load(reply)
    return found


def test_the_hub_counts_what_it_sent_and_no_more(hub: str, load: Load) -> None:
    url = f"{hub}/{REPOSITORY}/resolve/{COMMIT}/{MODEL}"
    with urllib.request.urlopen(url) as reply:
        assert reply.read() == load.file.read_bytes()
    assert counted(hub) == {"sent_bytes": SIZE, "answers": 1}
    part = urllib.request.Request(url, headers={"Range": f"bytes={SIZE - 1000}-"})
    with urllib.request.urlopen(part) as reply:
        assert reply.read() == load.file.read_bytes()[-1000:]
    assert counted(hub) == {"sent_bytes": SIZE + 1000, "answers": 2}


def test_headers_of_packets_are_told_apart_from_the_file() -> None:
    uplink = Uplink(1000, SentCount(1000 + 3 * HEADER_BYTES, 3))
    assert uplink.shares(1000) == (1.0, 1.0, 1.198)


def test_a_copy_with_one_wrong_bit_ends_the_benchmark(load: Load, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    content = bytearray(load.file.read_bytes())
    right.write_bytes(content)
    check_copies(load, [right])
    content[SIZE // 2] ^= 1
    wrong.write_bytes(content)
    with pytest.raises(SystemExit, match=r"wrong copies: \S*/wrong$"):
        check_copies(load, [right, wrong])


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    require_room(tmp_path, 0)
    with pytest.raises(SystemExit, match="GB are needed; name another folder"):
        require_room(tmp_path, 1 << 60)


def test_the_rate_leaves_the_disk_room_for_all_hosts_that_write_at_once() -> None:
    slow = DiskSpeed("ext4", write=20e6, read=1e9)
    assert link_rate_for(slow, 4) == pytest.approx(20e6 * SHARE / 4, rel=0.05)
    assert link_rate_for(DiskSpeed("ext4", 1e12, 1e12), 16) < link_rate_for(DiskSpeed("ext4", 1e12, 1e12), 4)


def test_a_file_system_in_memory_is_known_as_one() -> None:
    assert file_system_of(Path("/proc/self")) == "proc"
