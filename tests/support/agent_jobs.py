"""An agent's job side in a folder of its own: layout, supervisor with real runner processes, short ways to ask."""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fleet_agent.jobs.model import JobEvent, JobSpec, JobState, Step
from fleet_agent.jobs.store import JobFolder
from fleet_agent.jobs.supervisor import JobSupervisor, living_runner
from fleet_agent.layout import Layout
from fleet_agent.process import ProcessIdentity, identity_of, is_alive, wait_gone

FOREIGN_VARIABLES = ("HF_HOME", "HF_ENDPOINT", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "HF_HUB_CACHE")


def make_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str = "host") -> Layout:
    """A host of its own: home, agent root, machine id and runtime folder; nothing of the developer's leaks in."""
    home = tmp_path / name
    home.mkdir(exist_ok=True)
    for variable in FOREIGN_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.setenv("FLEET_AGENT_ROOT", str(home / "fleet"))
    monkeypatch.setenv("FLEET_MACHINE_ID", f"test-{name}")
    monkeypatch.setenv("FLEET_RUNTIME_DIR", str(tmp_path / "run"))
    layout = Layout.from_environment()
    layout.ensure()
    return layout


class Agent:
    """A supervisor, and what tests ask it."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.supervisor = JobSupervisor(layout)

    def folder(self, job_id: str) -> JobFolder:
        return JobFolder(self.layout.jobs_dir / job_id)

    async def finish(self, job_id: str, after_sequence: int = 0) -> list[JobEvent]:
        """All events until the terminal one."""
        return [event async for event in self.supervisor.watch(job_id, after_sequence)]

    async def run(self, *steps: Step, job_id: str = "job", **more: Any) -> list[JobEvent]:
        await self.supervisor.submit(JobSpec(job_id=job_id, title="test", steps=steps, **more))
        return await self.finish(job_id)

    async def until(self, job_id: str, wanted: Callable[[JobEvent], bool]) -> JobEvent:
        """The first event that `wanted` accepts."""
        async for event in self.supervisor.watch(job_id):
            if wanted(event):
                return event
        raise AssertionError("the job ended before that event")

    async def runner(self, job_id: str) -> ProcessIdentity:
        """The runner, once it runs."""
        await self.until(job_id, lambda event: event.state is JobState.RUNNING)
        runner = living_runner(self.folder(job_id))
        assert runner is not None
        return runner

    def restart(self) -> None:
        """As after a crash of the agent: a supervisor that knows nothing but the folders."""
        self.supervisor = JobSupervisor(self.layout)


@contextlib.asynccontextmanager
async def running_agent(layout: Layout) -> AsyncIterator[Agent]:
    """An agent whose unfinished jobs are cancelled at the end, so that no process stays."""
    agent = Agent(layout)
    await agent.supervisor.start()
    try:
        yield agent
    finally:
        for status in agent.supervisor.list(active_only=True):
            await agent.supervisor.cancel(status.job_id)
        await agent.supervisor.close()


async def kill(identity: ProcessIdentity) -> None:
    """SIGKILL, and wait until it has gone."""
    os.kill(identity.pid, signal.SIGKILL)
    assert await wait_gone(identity, 10)


async def assert_gone(pid: int, seconds: float = 10.0) -> None:
    identity = identity_of(pid)
    if identity is not None:
        assert await wait_gone(identity, seconds), f"process {pid} still runs"
        assert not is_alive(identity)


async def wait_for_size(path: Path, size_bytes: int, seconds: float = 60.0) -> None:
    """Until the file has grown to that size: what another process writes raises no event here."""

    def wait() -> None:
        deadline = time.monotonic() + seconds
        while not path.exists() or path.stat().st_size < size_bytes:
            assert time.monotonic() < deadline, f"{path} did not reach {size_bytes} bytes"
            time.sleep(0.02)

    await asyncio.to_thread(wait)


def state_of(events: list[JobEvent]) -> JobState | None:
    return events[-1].state


def result_of(events: list[JobEvent], step_index: int = 0) -> dict[str, Any]:
    found = [event.result for event in events if event.result is not None and event.step_index == step_index]
    assert len(found) == 1, [event.problem for event in events if event.problem]
    result: dict[str, Any] = json.loads(found[0].json)
    return result


def problem_of(events: list[JobEvent]) -> tuple[str, str, str]:
    """(code, message, remedy) of a job that failed."""
    assert state_of(events) is JobState.FAILED, events[-1]
    problem = next(event.problem for event in events if event.problem is not None)
    return problem.code, problem.message, problem.remedy


def logs_of(events: list[JobEvent]) -> list[str]:
    return [event.log.text for event in events if event.log is not None]
