"""Work that outlives its watcher, many hosts at once, and recognizing work that is under way."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.jobs import JobState, JobStatus
from fleet_controller.domain.steps import Step
from fleet_controller.fanout import WAITING_ITEMS, as_they_finish, merged
from fleet_controller.operations.jobs import STAGES, active_deploys, is_attempt_of
from fleet_controller.operations.running import REMEMBERED_EVENTS, RunningWork


class Gate:
    """Work that says how far it is, and goes on when told."""

    def __init__(self) -> None:
        self.starts = 0
        self.go_on = asyncio.Event()

    async def work(self) -> AsyncGenerator[HostEvent]:
        self.starts += 1
        yield HostEvent(host="a", message="first")
        await self.go_on.wait()
        yield HostEvent(host="a", message="last", done=True)


async def test_work_goes_on_without_its_watcher_and_is_joined_again() -> None:
    running, gate = RunningWork(), Gate()
    watcher = running.join(("a", "m"), "d", gate.work)
    assert (await anext(watcher)).message == "first"
    await watcher.aclose()  # Ctrl-C in the terminal

    assert running.digest_of(("a", "m")) == "d"
    second = running.join(("a", "m"), "d", gate.work)
    assert (await anext(second)).message == "first"
    gate.go_on.set()
    assert [event.message async for event in second] == ["last"]
    assert gate.starts == 1
    assert running.digest_of(("a", "m")) is None


async def test_what_work_raises_is_its_last_event() -> None:
    async def broken() -> AsyncGenerator[HostEvent]:
        yield HostEvent(host="a", message="first")
        raise RuntimeError("no")

    events = [event async for event in RunningWork().join(("a", "m"), "d", broken)]
    assert events[-1].done
    assert events[-1].problem is not None
    assert "no" in events[-1].problem.message


async def test_a_slow_watcher_misses_old_events_but_never_the_end() -> None:
    async def chatty() -> AsyncGenerator[HostEvent]:
        for number in range(REMEMBERED_EVENTS * 2):
            yield HostEvent(host="a", message=str(number))
        yield HostEvent(host="a", done=True)
        over.set()

    running, over = RunningWork(), asyncio.Event()
    watcher = running.join(("a", "m"), "d", chatty)
    await anext(watcher)
    await over.wait()
    rest = [event async for event in watcher]
    assert len(rest) <= REMEMBERED_EVENTS
    assert rest[-1].done


async def test_one_host_that_hangs_blocks_no_other() -> None:
    hang = asyncio.Event()

    async def work(name: str) -> str:
        if name == "down":
            await hang.wait()
        return name

    answers = as_they_finish(["down", "b", "c"], work)
    assert {await anext(answers), await anext(answers)} == {"b", "c"}
    hang.set()
    assert await anext(answers) == "down"


async def test_a_slow_reader_holds_a_fast_stream_back() -> None:
    made = 0

    async def endless() -> AsyncGenerator[int]:
        nonlocal made
        while True:
            made += 1
            yield made

    reader = merged([endless()])
    assert [await anext(reader) for _ in range(3)] == [1, 2, 3]
    await asyncio.sleep(0)
    assert made <= WAITING_ITEMS + 5
    await asyncio.wait_for(reader.aclose(), 10)  # also while the stream waits for room


async def test_leaving_a_merged_stream_closes_its_parts() -> None:
    closed = []

    async def part(name: str) -> AsyncGenerator[str]:
        try:
            yield name
            await asyncio.Event().wait()
        finally:
            closed.append(name)

    stream = merged([part("a"), part("b")])
    assert {await anext(stream), await anext(stream)} == {"a", "b"}
    await stream.aclose()
    assert sorted(closed) == ["a", "b"]


@pytest.mark.parametrize(
    ("job_id", "expected"),
    [("deploy-m-00", True), ("deploy-m-00-2", True), ("deploy-m-00-x", False), ("deploy-m", False)],
)
def test_attempts_of_a_job(job_id: str, expected: bool) -> None:
    assert is_attempt_of(job_id, "deploy-m-00") is expected


def test_only_unfinished_jobs_of_this_very_service_are_joined() -> None:
    digest = "0123456789abcdef"

    def job(job_id: str, state: JobState = JobState.RUNNING) -> JobStatus:
        return JobStatus(job_id=job_id, state=state)

    jobs = (
        job(f"deploy-qwen-{digest}"),
        job(f"deploy-qwen-{digest}-2", JobState.QUEUED),
        job(f"deploy-qwen-{digest}-3", JobState.FAILED),
        job(f"deploy-qwen-small-{digest}"),
        job(f"smoke-qwen-{digest}"),
    )
    assert [found.job_id for found in active_deploys(jobs, "qwen")] == [jobs[0].job_id, jobs[1].job_id]


def test_every_kind_of_step_has_its_word() -> None:
    assert set(STAGES) == set(Step.model_fields) - {"name"}
