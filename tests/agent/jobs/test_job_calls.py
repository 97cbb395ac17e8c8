"""The gRPC edge of jobs: our values carry exactly what the messages do."""

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fleet_agent.jobs import model
from fleet_agent.problem import ProblemError
from fleet_agent.server.jobs import JobCalls, spec_from_wire, to_wire
from fleet_proto.v1 import artifacts_pb2, common_pb2, jobs_pb2
from support.agent_jobs import Agent, make_layout, running_agent

MESSAGES = {
    **{name: getattr(jobs_pb2, name) for name in jobs_pb2.DESCRIPTOR.message_types_by_name},
    **{name: getattr(artifacts_pb2, name) for name in artifacts_pb2.DESCRIPTOR.message_types_by_name},
    **{name: getattr(common_pb2, name) for name in common_pb2.DESCRIPTOR.message_types_by_name},
}
MIRRORED = sorted(
    name for name, value in vars(model).items() if dataclasses.is_dataclass(value) and isinstance(value, type)
)


@pytest.fixture
async def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    async with running_agent(make_layout(tmp_path, monkeypatch)) as one:
        yield one


@pytest.mark.parametrize("name", MIRRORED)
def test_every_dataclass_mirrors_its_message(name: str) -> None:
    ours = {field.name for field in dataclasses.fields(getattr(model, name))}
    assert ours == set(MESSAGES[name].DESCRIPTOR.fields_by_name)


def test_states_are_those_of_the_contract() -> None:
    assert [state.value for state in model.JobState] == list(jobs_pb2.JobState.keys())


def test_a_spec_crosses_the_wire_whole() -> None:
    spec = model.JobSpec(
        "job",
        "title",
        (
            model.Step("a", verify_file=model.VerifyFileStep("/x", size_bytes=0)),
            model.Step("b", verify_file=model.VerifyFileStep("/x")),
            model.Step("c", run_tool=model.RunToolStep(model.ToolRef("k", "n"), ("-a",), stall_seconds=0.5)),
        ),
        2**60,
        (model.EnvironmentVariable("HF_ENDPOINT", "http://x"),),
    )
    assert spec_from_wire(to_wire(spec, jobs_pb2.JobSpec)) == spec


async def test_submit_watch_get_list_cancel(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    calls, context = JobCalls(agent.supervisor), None
    spec = jobs_pb2.JobSpec(job_id="job", title="check a file")
    spec.steps.add(name="verify").verify_file.path = str(tmp_path / "file")
    status = await calls.SubmitJob(jobs_pb2.SubmitJobRequest(spec=spec), context)
    assert (status.job_id, status.title, len(status.spec_digest)) == ("job", "check a file", 64)
    events: list[Any] = [event async for event in calls.WatchJob(jobs_pb2.WatchJobRequest(job_id="job"), context)]
    assert events[0].state == jobs_pb2.JOB_STATE_QUEUED
    assert events[-1].state == jobs_pb2.JOB_STATE_SUCCEEDED
    assert [event.step_started for event in events if event.WhichOneof("kind") == "step_started"] == ["verify"]
    done = await calls.GetJob(jobs_pb2.GetJobRequest(job_id="job"), context)
    assert done.HasField("finished_unix_ms")
    assert not done.HasField("problem")
    assert list((await calls.ListJobs(jobs_pb2.ListJobsRequest(), context)).jobs) == [done]
    assert not (await calls.ListJobs(jobs_pb2.ListJobsRequest(active_only=True), context)).jobs
    assert await calls.CancelJob(jobs_pb2.CancelJobRequest(job_id="job"), context) == done


async def test_a_step_that_this_agent_does_not_know_is_refused(agent: Agent) -> None:
    spec = jobs_pb2.JobSpec(job_id="job", title="from the future")
    spec.steps.add(name="new kind")
    with pytest.raises(ProblemError) as caught:
        await JobCalls(agent.supervisor).SubmitJob(jobs_pb2.SubmitJobRequest(spec=spec), None)
    assert "upgrade" in caught.value.remedy
