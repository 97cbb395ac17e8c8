"""What FindServers takes for foreign: never a service of ours, and whoever has the port of one that was stopped."""

import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from fleet_agent.layout import Layout
from fleet_agent.server.servers import ServerCalls
from fleet_agent.services.model import ServiceSpec, ServiceState
from fleet_proto.v1 import agent_pb2
from support.service_host import PATIENT, running, until
from support.tiny_model import make_tiny_model

pytestmark = pytest.mark.llama_cpp


def answering(argv: list[str], port: int) -> "subprocess.Popen[bytes]":
    """A server that somebody else started, once it listens."""
    process = subprocess.Popen(argv, stderr=subprocess.PIPE)
    assert process.stderr is not None
    for line in process.stderr:
        if b"server is listening" in line or b"listening on" in line:
            break
    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=PATIENT).close()
    return process


async def test_ours_is_no_stranger_and_a_stranger_on_our_port_is(
    llama_layout: Layout, llama_spec: Callable[..., ServiceSpec], llama_cpp_bin: Path, tmp_path: Path
) -> None:
    spec = llama_spec(make_tiny_model(tmp_path / "tiny").gguf_path)
    async with running(llama_layout) as supervisor:
        calls = ServerCalls(supervisor)
        request = agent_pb2.FindServersRequest(ports=[spec.port])
        await supervisor.apply(spec)
        await until(supervisor, ServiceState.READY)
        assert not (await calls.FindServers(request, None)).servers
        await supervisor.stop("tiny")
        stranger = answering([str(llama_cpp_bin / "llama-server"), *spec.arguments], spec.port)
        try:
            (found,) = (await calls.FindServers(request, None)).servers
            assert (found.backend, found.pid, found.address) == ("llama.cpp", stranger.pid, "127.0.0.1")
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()
