"""A real agent process, spoken to over its unix socket."""

import asyncio
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

import fleet_proto
from fleet_agent.process import ProcessIdentity, identity_of, is_alive, terminate_tree, wait_gone
from fleet_agent.server.app import Servicer
from fleet_proto.v1 import agent_pb2, common_pb2, hosts_pb2, jobs_pb2, services_pb2
from support.agent_process import agent_environment, running_agent, short_folder

# An agent whose table has, beside the real CPU probe, one that raises, one that has nothing to tell, one that hangs
# until somebody writes to the FIFO named in the environment, and one whose facts no message has a field for.
SERVE_WITH_BAD_PROBES = """
import os, sys
from pathlib import Path
from fleet_agent.probes import cpu
from fleet_agent.probes.model import CpuFacts, NoData, Probe
from fleet_agent.server.app import run

def failing(context):
    raise ZeroDivisionError("the sensor is gone")

def empty(context):
    raise NoData("no such device")

def hanging(context):
    Path(os.environ["TEST_FIFO"]).read_text()
    raise NoData("released")

LIMIT = float(os.environ["TEST_LIMIT"])
sys.exit(run((
    Probe("failing", failing), Probe("cpu", cpu.read), Probe("empty", empty),
    Probe("hanging", hanging, limit_seconds=LIMIT), Probe("homeless", lambda context: CpuFacts("x")),
)))
"""


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder / "run"


@pytest.fixture
def environment(tmp_path: Path, runtime_dir: Path) -> dict[str, str]:
    return agent_environment(tmp_path, runtime_dir)


def agent_command(environment: Mapping[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "fleet_agent", *arguments]
    return subprocess.run(command, env=dict(environment), capture_output=True, text=True, timeout=60, check=False)


def layout_document(environment: Mapping[str, str]) -> dict[str, Any]:
    done = agent_command(environment, "layout")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


def hello(protocol: int = fleet_proto.PROTOCOL, minimum: int | None = None) -> common_pb2.HandshakeRequest:
    return common_pb2.HandshakeRequest(
        protocol=protocol, minimum_protocol=protocol if minimum is None else minimum, software_version="9.9"
    )


def problem_of(error: grpc.aio.AioRpcError) -> common_pb2.Problem:
    values = [value for key, value in error.trailing_metadata() or () if key == "fleet-problem-bin"]
    assert len(values) == 1
    return common_pb2.Problem.FromString(values[0])


async def test_the_handshake_tells_who_answers(environment: dict[str, str]) -> None:
    async with running_agent(environment) as agent, agent.stub() as stub:
        reply = await stub.Handshake(hello())
        assert (reply.protocol, reply.minimum_protocol) == (fleet_proto.PROTOCOL, fleet_proto.MINIMUM_PROTOCOL)
        assert reply.pid == agent.process.pid
        document = layout_document(environment)
        assert reply.machine_id == document["machine_id"]
        assert reply.software_version == document["software_version"]
        assert str(agent.socket_path) == document["socket_path"]
        assert reply.started_unix_ms > 0


@pytest.mark.parametrize(
    ("request_message", "says", "way_out"),
    [
        (hello(fleet_proto.PROTOCOL + 2, fleet_proto.PROTOCOL + 1), "the agent is too old", "fleet agent upgrade HOST"),
        (hello(fleet_proto.MINIMUM_PROTOCOL - 1), "fleet is too old", "upgrade fleet"),
    ],
)
async def test_protocol_skew_is_refused_with_the_way_out(
    environment: dict[str, str], request_message: common_pb2.HandshakeRequest, says: str, way_out: str
) -> None:
    async with running_agent(environment) as agent, agent.stub() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Handshake(request_message)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        problem = problem_of(caught.value)
        assert problem.code == "protocol-skew"
        assert says in problem.message and "9.9" in problem.message
        assert way_out in problem.remedy
        assert caught.value.details() == f"{problem.message} ({problem.remedy})"


async def test_a_newer_caller_that_still_speaks_our_protocol_is_served(environment: dict[str, str]) -> None:
    async with running_agent(environment) as agent, agent.stub() as stub:
        assert (await stub.Handshake(hello(fleet_proto.PROTOCOL + 5, fleet_proto.PROTOCOL))).pid == agent.process.pid


async def test_the_socket_is_for_this_user_alone_and_not_in_the_home(
    environment: dict[str, str], tmp_path: Path
) -> None:
    async with running_agent(environment) as agent:
        state = agent.socket_path.lstat()
        assert stat.S_ISSOCK(state.st_mode) and stat.S_IMODE(state.st_mode) == 0o600
        assert stat.S_IMODE(agent.socket_path.parent.lstat().st_mode) == 0o700
        assert not agent.socket_path.is_relative_to(tmp_path)


async def test_facts_of_this_host(environment: dict[str, str]) -> None:
    async with running_agent(environment) as agent, agent.stub() as stub:
        facts = await stub.GetFacts(hosts_pb2.GetFactsRequest())
    document = layout_document(environment)
    assert facts.machine_id == document["machine_id"]
    assert facts.hostname == os.uname().nodename
    assert facts.layout.state_dir == document["machine_dir"]
    assert facts.layout.engines_dir == document["engines_dir"]
    assert facts.layout.hf_home == document["hf_home"]
    assert facts.layout.runtime_dir == document["runtime_dir"]
    assert [probe.name for probe in facts.probes] == [
        "system", "cpu", "memory", "disk", "nvidia", "apple", "engines", "tools",
    ]  # fmt: skip
    outcomes = {probe.name: probe.outcome for probe in facts.probes}
    for name in ("system", "cpu", "memory", "disk", "engines", "tools"):
        assert outcomes[name] == hosts_pb2.PROBE_OUTCOME_OK
    assert facts.system.architecture == os.uname().machine
    assert facts.cpu.logical_cores == os.cpu_count()
    assert 0 < facts.memory.available_bytes <= facts.memory.total_bytes
    assert {disk.purpose for disk in facts.disks} == {"state", "engines", "models", "home"}
    assert all(disk.free_bytes <= disk.total_bytes and disk.writable for disk in facts.disks)


async def test_what_is_not_on_this_host_is_absent_not_zero(environment: dict[str, str]) -> None:
    async with running_agent(environment) as agent, agent.stub() as stub:
        facts = await stub.GetFacts(hosts_pb2.GetFactsRequest(probes=["cpu", "apple"]))
    assert [probe.name for probe in facts.probes] == ["cpu", "apple"]
    assert facts.HasField("cpu") and not facts.HasField("memory") and not facts.HasField("nvidia")
    if sys.platform != "darwin":
        assert not facts.HasField("apple")
        assert facts.probes[1].outcome == hosts_pb2.PROBE_OUTCOME_NO_DATA
        assert facts.probes[1].detail == "not Apple silicon"


async def test_an_unknown_probe_is_the_callers_mistake(environment: dict[str, str]) -> None:
    async with running_agent(environment) as agent, agent.stub() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetFacts(hosts_pb2.GetFactsRequest(probes=["gpu"]))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "nvidia" in problem_of(caught.value).remedy


async def test_a_failing_and_a_hanging_probe_hurt_no_other(environment: dict[str, str], tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    names = ["failing", "cpu", "empty", "hanging"]
    settings = {**environment, "TEST_FIFO": str(fifo), "TEST_LIMIT": "0.2"}
    async with running_agent(settings, sys.executable, "-c", SERVE_WITH_BAD_PROBES) as agent, agent.stub() as stub:
        for _ in range(2):  # the second call finds the first one's thread still hanging
            facts = await stub.GetFacts(hosts_pb2.GetFactsRequest(probes=names))
            reports = {probe.name: (probe.outcome, probe.detail) for probe in facts.probes}
            assert reports == {
                "failing": (hosts_pb2.PROBE_OUTCOME_FAILED, "ZeroDivisionError: the sensor is gone"),
                "cpu": (hosts_pb2.PROBE_OUTCOME_OK, ""),
                "empty": (hosts_pb2.PROBE_OUTCOME_NO_DATA, "no such device"),
                "hanging": (hosts_pb2.PROBE_OUTCOME_TIMED_OUT, "no answer within 0.2 s"),
            }
            assert facts.cpu.logical_cores == os.cpu_count()
        if sys.platform == "linux":
            threads = [file.read_text() for file in Path(f"/proc/{agent.process.pid}/task").glob("*/comm")]
            assert threads.count("probe-hanging\n") <= 1
        assert await agent.terminate() == 0, "a thread that hangs does not keep the agent from ending"


async def test_the_agent_answers_others_while_a_probe_hangs(environment: dict[str, str], tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    settings = {**environment, "TEST_FIFO": str(fifo), "TEST_LIMIT": "60"}
    async with running_agent(settings, sys.executable, "-c", SERVE_WITH_BAD_PROBES) as agent, agent.stub() as stub:
        pending = asyncio.ensure_future(stub.GetFacts(hosts_pb2.GetFactsRequest(probes=["hanging"])))
        descriptor = await asyncio.to_thread(os.open, fifo, os.O_WRONLY)  # returns once the probe reads
        assert (await stub.Handshake(hello())).pid == agent.process.pid
        assert (await stub.GetFacts(hosts_pb2.GetFactsRequest(probes=["cpu"]))).HasField("cpu")
        assert not pending.done()
        os.close(descriptor)
        facts = await asyncio.wait_for(pending, 20)
        assert facts.probes[0].detail == "released"


async def test_an_unexpected_error_is_one_line_to_the_caller_and_a_traceback_in_the_log(
    environment: dict[str, str], tmp_path: Path
) -> None:
    settings = {**environment, "TEST_FIFO": str(tmp_path / "none"), "TEST_LIMIT": "1"}
    async with running_agent(settings, sys.executable, "-c", SERVE_WITH_BAD_PROBES) as agent, agent.stub() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetFacts(hosts_pb2.GetFactsRequest(probes=["homeless"]))
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        details = caught.value.details() or ""
        assert details.startswith("the agent failed at GetFacts: KeyError") and "\n" not in details
        assert problem_of(caught.value).code == "internal"
        assert (await stub.Handshake(hello())).pid == agent.process.pid
    log = Path(layout_document(environment)["log_path"]).read_text()
    assert "Traceback (most recent call last)" in log and "KeyError: 'homeless'" in log


async def test_an_error_of_a_stream_is_a_problem_too(environment: dict[str, str]) -> None:
    async with running_agent(environment) as agent, agent.stub() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.WatchJob(jobs_pb2.WatchJobRequest(job_id="no-such-job")):
                raise AssertionError("an unknown job has no events")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        assert "no-such-job" in problem_of(caught.value).message


async def test_a_second_agent_is_refused_and_the_first_goes_on(environment: dict[str, str]) -> None:
    async with running_agent(environment) as agent, agent.stub() as stub:
        for remove_lock in (False, True):
            if remove_lock:
                agent.socket_path.with_suffix(".lock").unlink()
            second = await asyncio.to_thread(agent_command, environment, "serve")
            assert second.returncode == 3
            assert f"an agent already runs on {agent.socket_path}" in second.stderr
            assert "what to do:" in second.stderr and "Traceback" not in second.stderr
            assert (await stub.Handshake(hello())).pid == agent.process.pid


async def test_a_killed_agents_socket_is_replaced(environment: dict[str, str]) -> None:
    async with running_agent(environment) as first:
        first.kill()
        await first.process.wait()
        assert first.socket_path.exists()
        async with running_agent(environment) as second, second.stub() as stub:
            assert second.socket_path == first.socket_path
            assert (await stub.Handshake(hello())).pid == second.process.pid


async def test_sigterm_ends_it_cleanly_and_another_may_start_at_once(environment: dict[str, str]) -> None:
    async with running_agent(environment) as agent:
        assert await agent.terminate() == 0
        assert not agent.socket_path.exists()
        async with running_agent(environment) as next_one, next_one.stub() as stub:
            assert (await stub.Handshake(hello())).pid == next_one.process.pid


async def test_an_agent_may_be_started_while_its_predecessor_is_still_ending(environment: dict[str, str]) -> None:
    async with running_agent(environment) as agent, agent.stub() as stub:
        await stub.Shutdown(agent_pb2.ShutdownRequest())
        async with running_agent(environment) as next_one, next_one.stub() as next_stub:
            assert (await next_stub.Handshake(hello())).pid == next_one.process.pid
        assert await asyncio.wait_for(agent.process.wait(), 20) == 0


async def test_shutdown_answers_and_leaves_services_running(environment: dict[str, str], tmp_path: Path) -> None:
    spec = services_pb2.ServiceSpec(
        name="sleeper",
        backend="test",
        tool=jobs_pb2.ToolRef(name="python3"),
        arguments=["-c", "import signal; signal.pause()"],
        bind_address="127.0.0.1",
        port=1,
        readiness=services_pb2.ReadinessProbe(path="/health", start_limit_seconds=600, interval_seconds=60),
    )
    started: ProcessIdentity | None = None
    try:
        async with running_agent(environment) as agent, agent.stub() as stub:
            await stub.ApplyService(services_pb2.ApplyServiceRequest(spec=spec))
            async for status in stub.WatchService(services_pb2.WatchServiceRequest(name="sleeper")):
                if status.HasField("process"):
                    started = identity_of(status.process.pid)
                    break
            assert started is not None and started.start_token == status.process.start_token
            assert await stub.Shutdown(agent_pb2.ShutdownRequest()) == agent_pb2.ShutdownReply()
            assert await asyncio.wait_for(agent.process.wait(), 20) == 0
            assert is_alive(started)
    finally:
        if started is not None:
            await terminate_tree(started, 1.0)
            assert await wait_gone(started, 20)


async def test_two_machines_that_share_a_home_have_two_agents(tmp_path: Path, runtime_dir: Path) -> None:
    one, two = (agent_environment(tmp_path, runtime_dir, name) for name in ("host-1", "host-2"))
    request = hosts_pb2.GetFactsRequest(probes=["cpu"])
    async with (
        running_agent(one) as first,
        running_agent(two) as second,
        first.stub() as first_stub,
        second.stub() as second_stub,
    ):
        replies = [await stub.Handshake(hello()) for stub in (first_stub, second_stub)]
        folders = [(await stub.GetFacts(request)).layout.state_dir for stub in (first_stub, second_stub)]
    assert [reply.pid for reply in replies] == [first.process.pid, second.process.pid]
    assert replies[0].machine_id != replies[1].machine_id
    assert [Path(folder).name for folder in folders] == [reply.machine_id for reply in replies]
    assert all(Path(folder).is_relative_to(tmp_path) for folder in folders)


def test_what_keeps_an_agent_from_starting_is_one_clear_message(environment: dict[str, str], tmp_path: Path) -> None:
    deep = agent_command({**environment, "FLEET_RUNTIME_DIR": str(tmp_path / ("d" * 100))}, "serve")
    assert deep.returncode == 3 and "a unix socket may have" in deep.stderr and "FLEET_RUNTIME_DIR" in deep.stderr

    configuration = Path(layout_document(environment)["configuration_path"])
    configuration.parent.mkdir(parents=True)
    configuration.write_text('{"environment": {"LD_PRELOAD": "x.so"}}')
    bad = agent_command(environment, "serve")
    assert bad.returncode == 3 and "LD_PRELOAD" in bad.stderr and str(configuration) in bad.stderr

    configuration.unlink()
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    exposed = agent_command({**environment, "FLEET_RUNTIME_DIR": str(tmp_path / "open")}, "serve")
    assert exposed.returncode == 3 and "mode 0755" in exposed.stderr
    assert not any("Traceback" in done.stderr for done in (deep, bad, exposed))


def test_layout_and_version_load_no_grpc(environment: dict[str, str]) -> None:
    program = """
import sys
from fleet_agent.__main__ import main
assert main(["layout"]) == 0 and main(["version"]) == 0
heavy = sorted({name.partition(".")[0] for name in sys.modules} & {"grpc", "google", "psutil", "pynvml", "asyncio"})
sys.exit(f"loaded: {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_idle_server_loads_nothing_that_it_does_not_need(environment: dict[str, str]) -> None:
    program = """
import sys
import fleet_agent.server.app, fleet_agent.server.jobs, fleet_agent.server.services
import fleet_agent.jobs.supervisor, fleet_agent.services.supervisor
heavy = {"huggingface_hub", "pydantic", "psutil", "pynvml", "asyncssh", "aiohttp", "requests", "httpx"}
found = sorted({name.partition(".")[0] for name in sys.modules} & heavy)
sys.exit(f"loaded: {found}" if found else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_call_without_a_part_that_serves_it_stops_the_start() -> None:
    with pytest.raises(TypeError, match="no part serves Handshake"):
        Servicer(object())


@pytest.mark.parametrize("arguments", [[], ["serve", "now"], ["run-job"], ["dance"]])
def test_wrong_usage(environment: dict[str, str], arguments: list[str]) -> None:
    done = agent_command(environment, *arguments)
    assert done.returncode == 2 and done.stderr.startswith("usage: ")
