"""A real gRPC server on a unix socket answers badly; the client says what a user can do about it."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from fleet_controller.transport import (
    AgentClient,
    AgentPool,
    AgentRefused,
    HostUnreachable,
    NoAgent,
    ProtocolSkew,
    TransportError,
)
from fleet_controller.transport.client import PROBLEM_METADATA_KEY, open_channel
from fleet_controller.transport.discovery import InstalledAgent
from fleet_inventory.hosts import Host
from fleet_proto import PROTOCOL
from fleet_proto.v1 import agent_pb2_grpc, common_pb2, jobs_pb2


class Agent(agent_pb2_grpc.AgentServicer):
    """Handshakes well; GetJob and WatchJob do what a test says."""

    def __init__(self) -> None:
        self.reply = common_pb2.HandshakeReply(protocol=PROTOCOL, minimum_protocol=PROTOCOL, machine_id="m", pid=1)
        self.get_job: Callable[[Any], Awaitable[Any]] | None = None
        self.watch: Callable[[int], AsyncIterator[jobs_pb2.JobEvent]] | None = None

    async def Handshake(self, request: Any, context: Any) -> common_pb2.HandshakeReply:
        return self.reply

    async def GetJob(self, request: Any, context: Any) -> Any:
        assert self.get_job is not None
        return await self.get_job(context)

    async def WatchJob(self, request: Any, context: Any) -> AsyncIterator[jobs_pb2.JobEvent]:
        assert self.watch is not None
        async for event in self.watch(request.after_sequence):
            yield event


class Stage:
    """The server, which can be stopped and started again on the same socket."""

    def __init__(self, folder: str) -> None:
        self.path = f"{folder}/a.sock"
        self.agent = Agent()  # type: ignore[abstract]  # the calls that no test makes stay unimplemented
        self.server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self.server = grpc.aio.server()
        agent_pb2_grpc.add_AgentServicer_to_server(self.agent, self.server)
        self.server.add_insecure_port(f"unix:{self.path}")
        await self.server.start()

    async def stop(self) -> None:
        if self.server:
            await self.server.stop(None)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="fleet-t-") as folder:
        stage = Stage(folder)
        await stage.start()
        yield stage
        await stage.stop()


async def failure(stage: Stage, link_is_closed: bool = False) -> TransportError:
    channel = open_channel(stage.path)
    try:
        with pytest.raises(TransportError) as caught:
            await AgentClient("gpu1", channel, lambda: link_is_closed).get_job("j")
        return caught.value
    finally:
        await channel.close()


async def test_the_agents_own_problem_reaches_the_caller_whole(stage: Stage) -> None:
    problem = common_pb2.Problem(code="disk-full", message="no space in /x", remedy="free 3 GB")

    async def refuse(context: Any) -> None:
        metadata = ((PROBLEM_METADATA_KEY, problem.SerializeToString()),)
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, problem.message, metadata)

    stage.agent.get_job = refuse
    error = await failure(stage)
    assert isinstance(error, AgentRefused)
    assert (error.problem.code, error.problem.remedy, error.status) == ("disk-full", "free 3 GB", "FAILED_PRECONDITION")


async def test_a_refusal_without_a_problem_still_says_what_happened(stage: Stage) -> None:
    async def refuse(context: Any) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no job j")

    stage.agent.get_job = refuse
    error = await failure(stage)
    assert isinstance(error, AgentRefused)
    assert (error.problem.code, error.problem.message) == ("not-found", "no job j")


async def test_a_protocol_refusal_is_skew(stage: Stage) -> None:
    async def refuse(context: Any) -> None:
        problem = common_pb2.Problem(code="protocol-skew", message="too old")
        metadata = ((PROBLEM_METADATA_KEY, problem.SerializeToString()),)
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "too old", metadata)

    stage.agent.get_job = refuse
    error = await failure(stage)
    assert isinstance(error, ProtocolSkew)
    assert "fleet agent upgrade gpu1" in error.problem.remedy


@pytest.mark.parametrize(
    ("protocol", "minimum", "way_out"),
    [(PROTOCOL - 1, PROTOCOL - 1, "fleet agent upgrade gpu1"), (PROTOCOL + 2, PROTOCOL + 1, "upgrade fleet on this")],
)
async def test_a_handshake_whose_ranges_do_not_meet_names_the_way_out(
    stage: Stage, protocol: int, minimum: int, way_out: str
) -> None:
    stage.agent.reply = common_pb2.HandshakeReply(protocol=protocol, minimum_protocol=minimum)
    channel = open_channel(stage.path)
    with pytest.raises(ProtocolSkew) as caught:
        await AgentClient("gpu1", channel).handshake()
    assert way_out in caught.value.problem.remedy
    await channel.close()


async def test_nobody_on_the_socket_is_no_agent_or_a_lost_link(stage: Stage) -> None:
    await stage.stop()
    assert isinstance(await failure(stage), NoAgent)
    assert isinstance(await failure(stage, link_is_closed=True), HostUnreachable)


def event(sequence: int, state: Any = None) -> jobs_pb2.JobEvent:
    return jobs_pb2.JobEvent(sequence=sequence, state=state or jobs_pb2.JOB_STATE_RUNNING)


async def test_a_followed_job_goes_on_after_the_agent_came_back(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    async def watch(after: int) -> AsyncIterator[jobs_pb2.JobEvent]:
        asked.append(after)
        if after == 0:
            yield event(1)
            yield event(2)
            await asyncio.Event().wait()
        yield event(3, jobs_pb2.JOB_STATE_SUCCEEDED)

    async def found(*_: object) -> InstalledAgent:
        return InstalledAgent("m", "/", stage.path, "1", running=True, manager="background")

    stage.agent.watch = watch
    monkeypatch.setattr("fleet_controller.transport.pool.discover", found)
    pool = AgentPool(tmp_path)
    host = Host.model_validate({"name": "gpu1", "address": "localhost", "transport": "local"})
    seen = []
    async for item in pool.follow_job(host, "j"):
        seen.append(item.sequence)
        if item.sequence == 2 and len(asked) == 1:
            await stage.stop()
            Path(stage.path).unlink(missing_ok=True)
            await stage.start()
    assert seen == [1, 2, 3]
    assert asked == [0, 2]
    await pool.close()


async def test_a_followed_job_survives_that_bring_up_drops_the_channel(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    async def watch(after: int) -> AsyncIterator[jobs_pb2.JobEvent]:
        asked.append(after)
        if after == 0:
            yield event(1)
            await asyncio.Event().wait()
        yield event(2, jobs_pb2.JOB_STATE_SUCCEEDED)

    async def found(*_: object) -> InstalledAgent:
        return InstalledAgent("m", "/", stage.path, "1", running=True, manager="background")

    stage.agent.watch = watch
    monkeypatch.setattr("fleet_controller.transport.pool.discover", found)
    pool = AgentPool(tmp_path)
    host = Host.model_validate({"name": "gpu1", "address": "localhost", "transport": "local"})
    seen: list[int] = []
    dropping: list[asyncio.Task[None]] = []
    async for item in pool.follow_job(host, "j"):
        seen.append(item.sequence)
        if item.sequence == 1:
            dropping.append(asyncio.create_task(pool.reset_channel(host)))
    assert (seen, asked) == ([1, 2], [0, 1])
    await asyncio.gather(*dropping)
    await pool.close()


async def test_a_callers_own_cancellation_stays_one(stage: Stage) -> None:
    started = asyncio.Event()

    async def hang(_: Any) -> None:
        started.set()
        await asyncio.Event().wait()

    stage.agent.get_job = hang
    channel = open_channel(stage.path)
    task = asyncio.create_task(AgentClient("gpu1", channel).get_job("j"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await channel.close()


async def test_a_job_on_a_host_that_stays_away_ends_in_an_error(stage: Stage, tmp_path: Path) -> None:
    host = Host.model_validate(
        {"name": "gpu1", "address": "localhost", "transport": "local", "agent_root": str(tmp_path / "none")}
    )
    pool = AgentPool(tmp_path)
    with pytest.raises(NoAgent) as caught:
        async for _ in pool.follow_job(host, "j", patience_seconds=0):
            pass
    assert caught.value.problem.remedy == "fleet up gpu1"
    await pool.close()
