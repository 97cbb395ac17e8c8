"""Strangers on a device, in a user's words."""

from datetime import datetime, timedelta

from fleet_agent.probes.model import GpuProcess
from fleet_agent.services.devices import describe_process


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
