"""Logs: rotated under an open append descriptor, read back as one."""

import asyncio
import os
from pathlib import Path

import pytest

from fleet_agent.services.logs import LogLimits, ServiceLog

PATIENT = 30.0


class Writer:
    """A server's side of the log: one descriptor, kept open over rotations."""

    def __init__(self, log: ServiceLog) -> None:
        self._descriptor = log.open_for_append()
        self.count = 0

    def lines(self, count: int) -> None:
        for _ in range(count):
            os.write(self._descriptor, f"line {self.count:06d}\n".encode())
            self.count += 1

    def close(self) -> None:
        os.close(self._descriptor)


def numbers(data: bytes) -> list[int]:
    return [int(line.split()[1]) for line in data.splitlines()]


@pytest.fixture
def log(tmp_path: Path) -> ServiceLog:
    return ServiceLog(tmp_path / "service-tiny.log", LogLimits(largest_bytes=1200, kept_files=3))


def test_rotation_keeps_every_line_and_the_open_descriptor(log: ServiceLog) -> None:
    writer = Writer(log)
    for _ in range(3):
        writer.lines(101)
        assert log.rotate_if_large()
        assert log.size_bytes() == 0
    writer.lines(5)
    assert not log.rotate_if_large()
    assert numbers(log.tail(0)) == list(range(308))
    writer.lines(101)
    assert log.rotate_if_large()
    assert numbers(log.tail(0)) == list(range(101, 409))  # the oldest part is gone
    writer.close()


@pytest.mark.parametrize("lines", [1, 5, 6, 100, 107, 300])
def test_tail_reaches_over_rotated_parts(log: ServiceLog, lines: int) -> None:
    writer = Writer(log)
    for _ in range(2):
        writer.lines(101)
        log.rotate_if_large()
    writer.lines(6)
    assert numbers(log.tail(lines)) == list(range(208))[-lines:]
    writer.close()


def test_tail_of_long_lines_and_of_an_unfinished_one(tmp_path: Path) -> None:
    log = ServiceLog(tmp_path / "log")
    assert log.tail(3) == b""
    long = b"x" * 200_000
    log.path.write_bytes(b"first\n" + long + b"\n" + b"10%\r20%\r30%\nunfinished")
    assert log.tail(1) == b"unfinished"
    assert log.tail(2) == b"10%\r20%\r30%\nunfinished"
    assert log.tail(3) == long + b"\n10%\r20%\r30%\nunfinished"
    assert log.tail(99) == log.path.read_bytes()


async def test_follow_gives_tail_then_every_line_once_over_rotations(tmp_path: Path) -> None:
    log = ServiceLog(tmp_path / "log", LogLimits(largest_bytes=1200, kept_files=20))
    writer = Writer(log)
    writer.lines(10)
    received = b""
    last = 10 + 40 * 37
    started = asyncio.Event()

    async def read() -> None:
        nonlocal received
        async for chunk in log.read(4, follow=True):
            received += chunk
            started.set()
            if received.endswith(f"line {last - 1:06d}\n".encode()):
                return

    reading = asyncio.ensure_future(read())
    await asyncio.wait_for(started.wait(), PATIENT)
    for _ in range(40):
        writer.lines(37)
        log.rotate_if_large()
        await asyncio.sleep(0.01)  # lets the reader in now and then: several rotations fall into one of its pauses
    await asyncio.wait_for(reading, PATIENT)
    assert numbers(received) == list(range(6, last))
    writer.close()


async def test_follow_waits_for_a_log_that_is_not_there_yet(log: ServiceLog) -> None:
    following = log.read(0, follow=True)
    first = asyncio.ensure_future(following.__anext__())
    await asyncio.sleep(0)
    log.note("start")
    assert await asyncio.wait_for(first, PATIENT) == b"[fleet] start\n"
    await following.aclose()  # type: ignore[attr-defined]


def test_a_link_in_the_place_of_the_log_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "log").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        ServiceLog(tmp_path / "log").note("x")
    assert victim.read_text() == "mine"


async def test_reading_everything_meets_a_rotation_half_way(tmp_path: Path) -> None:
    log = ServiceLog(tmp_path / "log", LogLimits(largest_bytes=1200, kept_files=3))
    writer = Writer(log)
    for _ in range(2):
        writer.lines(101)
        log.rotate_if_large()
    writer.lines(101)
    received = b""
    async for chunk in log.read(0, follow=False):
        if not received:
            assert log.rotate_if_large()
            writer.lines(3)
        received += chunk
    assert numbers(received) == list(range(306))
    writer.close()
