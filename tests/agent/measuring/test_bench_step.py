"""The bench step with the real llama-bench, in real runner processes that get killed."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

from fleet_agent.jobs.model import BenchServer, DeviceWatch, JobEvent, JobSpec, JobState, ToolRef
from fleet_agent.leases.store import Lease, LeaseStore
from fleet_agent.process import identity_of
from fleet_agent.services.journal import ServiceJournal, ServiceRecord
from fleet_agent.services.model import DesiredState, ServiceSpec, ServiceState, ToolReference
from fleet_agent.services.transitions import Condition
from support.agent_jobs import Agent, kill, problem_of, result_of, state_of
from support.bench_jobs import ENGINE, bench

pytestmark = pytest.mark.llama_cpp
LONG = ("-r", "2500")


def is_mark(event: JobEvent) -> bool:
    """The measurement itself has begun, and has most of its runs before it."""
    label = event.progress.label if event.progress is not None else ""
    return "prompt run" in label and "warmup" not in label


async def test_a_measurement_comes_with_samples_marks_hashes_and_raw_output(agent: Agent, model: Path) -> None:
    warm_up = ("-m", str(model), "-p", "8", "-n", "0", "-r", "1", "-o", "json")
    step = bench(model, "-r", "20", artifact_paths=(str(model),), warmup_arguments=warm_up, warmup_limit=3)
    result = result_of(await agent.run(step))
    assert result["outcome"] == "measured"
    assert [row["n_gen"] for row in json.loads(result["stdout"])] == [0, 4]
    assert "benchmark 2/2" in result["marks"][-1][1] and "benchmark 1/2" in result["stderr"]
    assert result["artifacts"][0]["size_bytes"] == model.stat().st_size
    assert 2 <= len(result["warmup_seconds"]) <= 3
    assert all("load_average_1m" in sample for sample in result["samples"])
    assert result["started_unix_ms"] <= result["finished_unix_ms"]
    assert LeaseStore.of(agent.layout).live() == ()


async def test_a_tool_that_fails_fails_the_job_in_its_own_words(agent: Agent, tmp_path: Path) -> None:
    code, message, _ = problem_of(await agent.run(bench(tmp_path / "nothing.gguf")))
    assert code == "tool-failed" and "llama-bench" in message
    assert LeaseStore.of(agent.layout).live() == ()


async def test_the_device_is_leased_for_as_long_as_it_is_measured(agent: Agent, model: Path) -> None:
    await agent.supervisor.submit(JobSpec("job", "bench tiny F16", (bench(model, *LONG),)))
    await agent.until("job", is_mark)
    (lease,) = LeaseStore.of(agent.layout).live()
    assert (lease.owner, lease.title) == ("job", "bench tiny F16")
    await agent.supervisor.cancel("job")
    assert LeaseStore.of(agent.layout).live() == ()


async def test_a_second_bench_waits_for_the_first(agent: Agent, model: Path) -> None:
    holder = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(600)")
    try:
        identity = identity_of(holder.pid)
        assert identity is not None
        store = LeaseStore.of(agent.layout)
        store.acquire(Lease("other", "bench other", identity, 1_795_000_000_000))
        await agent.supervisor.submit(JobSpec("job", "second", (bench(model),)))
        told = await agent.until("job", lambda event: event.log is not None and "waiting for" in event.log.text)
        assert told.log is not None and "bench other since" in told.log.text
    finally:
        holder.kill()
        await holder.wait()
    assert state_of(await agent.finish("job")) is JobState.SUCCEEDED


async def test_a_killed_runner_measures_again_and_leaves_no_lease_and_no_child(agent: Agent, model: Path) -> None:
    await agent.supervisor.submit(JobSpec("job", "bench", (bench(model, *LONG),)))
    runner = await agent.runner("job")
    await agent.until("job", is_mark)
    (child,) = json.loads((agent.folder("job").path / "children.json").read_text())
    await kill(runner)
    events = await agent.finish("job")
    assert result_of(events)["outcome"] == "measured"
    assert identity_of(child["pid"]) is None or identity_of(child["pid"]).start_token != child["start_token"]  # type: ignore[union-attr]
    assert LeaseStore.of(agent.layout).live() == ()


async def test_a_server_of_its_own_is_started_measured_and_ended(agent: Agent, model: Path) -> None:
    server = BenchServer(
        ToolRef(ENGINE, "bin/llama-server"),
        ("-m", str(model), "-c", "512", "--host", "127.0.0.1", "--port", "{port}"),
        readiness_path="/health",
        start_limit_seconds=60.0,
    )
    result = result_of(await agent.run(bench(model, server=server)))
    port = result["server_argv"][-1]
    assert result["outcome"] == "measured" and port.isdigit()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", int(port))


async def test_a_server_that_does_not_start_is_told_by_its_last_words(agent: Agent, model: Path) -> None:
    server = BenchServer(ToolRef(ENGINE, "bin/llama-server"), ("--no-such-option",), readiness_path="/health")
    code, message, _ = problem_of(await agent.run(bench(model, server=server)))
    assert code == "server-failed" and "no-such-option" in message


def serving(agent: Agent, name: str = "glm") -> None:
    """A service of ours that should run on this host, as its journal says."""
    spec = ServiceSpec(name, ToolReference("bin/server", "fake"), port=8080)
    ServiceJournal(agent.layout.services_dir).write(
        ServiceRecord(spec, DesiredState.RUNNING, Condition(ServiceState.READY))
    )


async def test_our_own_service_on_the_device_is_busy_too(agent: Agent, model: Path) -> None:
    serving(agent)
    code, message, remedy = problem_of(await agent.run(bench(model), job_id="refused"))
    assert (code, message) == ("busy", "busy: our own glm runs there")
    assert "--pause-services" in remedy
    assert (
        result_of(await agent.run(bench(model, service="glm", service_is_idle=True), job_id="it"))["paused_services"]
        == []
    )
    paused = result_of(await agent.run(bench(model, pause_services=True), job_id="paused"))
    assert paused["paused_services"] == ["glm"]


def test_a_watch_with_a_negative_limit_is_refused(model: Path) -> None:
    from fleet_agent.jobs.errors import SpecProblem
    from fleet_agent.steps.bench import check

    step = bench(model, watch=DeviceWatch(idle_wait_seconds=-1.0)).bench
    assert step is not None
    with pytest.raises(SpecProblem):
        check(step)
