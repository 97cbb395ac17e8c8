"""The real llama-server with a tiny GGUF: served, killed, adopted by a real agent process, and its real failures."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest

from fleet_agent.layout import Layout
from fleet_agent.process import identity_of
from fleet_agent.server.services import spec_to_wire
from fleet_agent.services.model import ServiceSpec, ServiceState
from fleet_proto.v1 import agent_pb2_grpc, services_pb2
from support.service_host import PATIENT, pid_of, ready_again, running, until
from support.tiny_model import ANSWER, make_tiny_model

pytestmark = pytest.mark.llama_cpp
LlamaSpec = Callable[..., ServiceSpec]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny")).gguf_path


async def chat(port: int) -> str:
    body = json.dumps({"messages": [{"role": "user", "content": "Which one?"}], "max_tokens": 32}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", body, {"Content-Type": "application/json"}
    )

    def ask() -> str:
        with urllib.request.urlopen(request, timeout=PATIENT) as reply:
            return str(json.load(reply)["choices"][0]["message"]["content"])

    return await asyncio.to_thread(ask)


async def test_ready_chat_killed_back_and_chat_again(llama_layout: Layout, llama_spec: LlamaSpec, gguf: Path) -> None:
    async with running(llama_layout) as supervisor:
        spec = llama_spec(gguf)
        await supervisor.apply(spec)
        first = await until(supervisor, ServiceState.READY)
        assert await chat(spec.port) == ANSWER
        os.kill(pid_of(first), signal.SIGKILL)
        await until(supervisor, ready_again(first))
        assert await chat(spec.port) == ANSWER
        await supervisor.stop("tiny")
        with pytest.raises(OSError):
            await chat(spec.port)


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda data: data[:1_500_000], "model-damaged"),
        (lambda data: data[:2000], "model-damaged"),
        (lambda data: data.replace(b"qwen3", b"qwexx"), "unknown-architecture"),
    ],
    ids=["truncated data", "truncated header", "unknown architecture"],
)
async def test_a_bad_gguf_fails_with_its_cause(
    llama_layout: Layout, llama_spec: LlamaSpec, gguf: Path, tmp_path: Path, damage: Callable[[bytes], bytes], code: str
) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(damage(gguf.read_bytes()))
    async with running(llama_layout) as supervisor:
        await supervisor.apply(llama_spec(bad))
        failed = await until(supervisor, ServiceState.FAILED)
        assert failed.problem is not None and (failed.problem.code, failed.restarts) == (code, 0)
        assert failed.last_exit_code == 1


class Agent:
    """A real agent process and a channel to it."""

    def __init__(self, environment: dict[str, str], layout: Layout) -> None:
        self._environment, self._layout = environment, layout
        self.process: asyncio.subprocess.Process | None = None

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[agent_pb2_grpc.AgentStub]:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "fleet_agent", "serve", env=self._environment, stderr=asyncio.subprocess.PIPE
        )
        assert self.process.stderr is not None
        said = await asyncio.wait_for(self.process.stderr.readline(), PATIENT)
        assert b"serving" in said, said + await self.process.stderr.read()
        try:
            async with grpc.aio.insecure_channel(f"unix:{self._layout.socket_path}") as channel:
                yield agent_pb2_grpc.AgentStub(channel)
        finally:
            await self.kill()

    async def kill(self) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


async def when(
    stub: agent_pb2_grpc.AgentStub, state: services_pb2.ServiceState.ValueType
) -> services_pb2.ServiceStatus:
    async def find() -> services_pb2.ServiceStatus:
        status: services_pb2.ServiceStatus
        async for status in stub.WatchService(services_pb2.WatchServiceRequest(name="tiny")):
            if status.state == state:
                return status
        raise AssertionError("the watch ended")

    return await asyncio.wait_for(find(), PATIENT)


async def test_kill_9_of_the_agent_drops_nothing_and_doubles_nothing(
    agent_environment: dict[str, str], llama_layout: Layout, llama_spec: LlamaSpec, gguf: Path
) -> None:
    agent = Agent(agent_environment, llama_layout)
    spec = llama_spec(gguf)
    async with agent.serving() as stub:
        await stub.ApplyService(services_pb2.ApplyServiceRequest(spec=spec_to_wire(spec)))
        first = await when(stub, services_pb2.SERVICE_STATE_READY)
        await agent.kill()
    assert await chat(spec.port) == ANSWER  # without any agent

    async with agent.serving() as stub:
        adopted = await when(stub, services_pb2.SERVICE_STATE_READY)
        assert adopted.process == first.process and adopted.spec_digest == spec.digest()
        again = await stub.ApplyService(services_pb2.ApplyServiceRequest(spec=spec_to_wire(spec)))
        assert again.process == first.process
        log = [chunk.data async for chunk in stub.ReadLog(services_pb2.ReadLogRequest(service="tiny"))]
        assert b"".join(log).count(b"[fleet] ") == 1
        await agent.kill()

    # A reboot: the server is gone as well, and the journal alone brings it back.
    os.kill(first.process.pid, signal.SIGKILL)
    async with agent.serving() as stub:
        back = await when(stub, services_pb2.SERVICE_STATE_READY)
        assert back.process != first.process and back.restarts == 1
        assert await chat(spec.port) == ANSWER
        stopped = await stub.StopService(services_pb2.StopServiceRequest(name="tiny", remove=True))
        assert stopped.state == services_pb2.SERVICE_STATE_STOPPED
        assert identity_of(back.process.pid) is None
        listed = await stub.ListServices(services_pb2.ListServicesRequest())
        assert not listed.services
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub.StopService(services_pb2.StopServiceRequest(name="tiny"))
        assert refusal.value.code() is grpc.StatusCode.NOT_FOUND
