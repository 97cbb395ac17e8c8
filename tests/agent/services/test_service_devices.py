"""Strangers on a device, in a user's words."""

import threading
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from fleet_agent.probes.model import GpuFacts, GpuProcess, NvidiaDriverFacts, NvidiaFacts
from fleet_agent.services import devices
from fleet_agent.services.devices import NvidiaDevices, describe_process


def milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def test_a_stranger_of_today_and_one_of_another_day() -> None:
    today = datetime.now().replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(minutes=2)
    process = GpuProcess(
        pid=7, user="alice", command="python", memory_bytes=18_200_000_000, started_unix_ms=milliseconds(today)
    )
    assert describe_process(process) == "alice, python, 18.2 GB since 00:02"
    older = GpuProcess(
        pid=7, user="alice", command="python", started_unix_ms=milliseconds(datetime(2020, 5, 17, 14, 2))
    )
    assert describe_process(older) == "alice, python since 2020-05-17 14:02"


def test_what_cannot_be_seen_is_left_out() -> None:
    assert describe_process(GpuProcess(pid=7)) == "somebody, pid 7"


def test_a_driver_that_hangs_costs_one_limit_and_is_asked_again_once_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor asks on its event loop: a call that never comes back would be the end of the agent."""
    released = threading.Event()
    asked: list[threading.Thread] = []

    def read_facts() -> NvidiaFacts:
        asked.append(threading.current_thread())
        released.wait()
        return NvidiaFacts(NvidiaDriverFacts(), (GpuFacts(index=0, uuid="", name="", memory_free_bytes=7),))

    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(devices, "_CONTROL_DEVICE", tmp_path / "nvidiactl")
    monkeypatch.setattr(devices, "read_facts", read_facts)
    monkeypatch.setattr(devices, "foreign_gpu_processes", lambda *_: read_facts() and ())
    driver = NvidiaDevices(limit_seconds=0.05)
    assert driver.free_bytes((0,)) is None
    assert driver.strangers((0,), ()) == ()
    assert len(asked) == 1
    released.set()
    asked[0].join(10)
    assert driver.free_bytes((0,)) == 7
