"""Two devices of a host are measured at once, each by one at a time: real jobs, on GPUs that a stand-in tells of."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet_agent.jobs.model import DeviceWatch, JobEvent, JobSpec, JobState, Step
from fleet_agent.jobs.supervisor import JobSupervisor
from fleet_agent.leases.store import LeaseStore
from support.agent_jobs import Agent, logs_of, result_of, state_of
from support.bench_jobs import bench

pytestmark = pytest.mark.llama_cpp
RUNNER = Path(__file__).parent / "runner_with_two_gpus.py"
LONG = ("-r", "20000", "-t", "1")  # each is cancelled, or ends with the test


@pytest.fixture
async def host(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    agent.supervisor = JobSupervisor(agent.layout, runner_command=(sys.executable, str(RUNNER)))
    yield agent


def on(gpu: int, model: Path, *arguments: str) -> Step:
    watch = DeviceWatch(gpu_indices=(gpu,), idle_wait_seconds=60.0, interval_seconds=0.05)
    return bench(model, *arguments, watch=watch)


def is_mark(event: JobEvent) -> bool:
    return event.progress is not None and " run " in event.progress.label


async def test_other_devices_are_measured_side_by_side_and_the_same_one_is_waited_for(host: Agent, model: Path) -> None:
    await host.supervisor.submit(JobSpec("first", "bench on 0", (on(0, model, *LONG),)))
    await host.supervisor.submit(JobSpec("second", "bench on 1", (on(1, model, *LONG),)))
    await host.until("first", is_mark)
    await host.until("second", is_mark)
    assert {lease.owner: lease.gpu_indices for lease in LeaseStore.of(host.layout).live()} == {
        "first": (0,), "second": (1,)
    }  # fmt: skip
    await host.supervisor.submit(JobSpec("third", "bench on 0 again", (on(0, model, "-r", "20", "-t", "1"),)))
    told = await host.until("third", lambda event: event.log is not None and "waiting for" in event.log.text)
    assert told.log is not None and "bench on 0 since" in told.log.text
    await host.supervisor.cancel("first")
    events = await host.finish("third")
    assert state_of(events) is JobState.SUCCEEDED, logs_of(events)
    looks = result_of(events)["samples"]
    assert {device["index"] for look in looks for device in look["devices"]} == {0}
    assert looks[0]["devices"][0]["power_watts"] == 120.0
    assert [lease.owner for lease in LeaseStore.of(host.layout).live()] == ["second"]
