"""Readiness probes against real sockets, and progress as a reason to wait on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from fleet_agent.services.model import ReadinessProbe, ServiceSpec, ToolReference
from fleet_agent.services.readiness import Effort, ProgressMeter, probe, probe_address


@contextlib.asynccontextmanager
async def server(answer: bytes, seen: list[bytes] | None = None) -> AsyncIterator[ServiceSpec]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if seen is not None:
            seen.append(request)
        writer.write(answer)
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        yield ServiceSpec("x", ToolReference("x"), port=port, readiness=ReadinessProbe("/v1/models?a=1"))


@pytest.mark.parametrize(
    ("answer", "ready", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True, "HTTP 200"),
        (b"HTTP/1.0 204 No Content\r\n\r\n", True, "HTTP 204"),
        (b'HTTP/1.1 503 Service Unavailable\r\n\r\n{"error":{"message":"Loading model"}}', False, "still loading"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", False, "HTTP 404"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", False, "not HTTP"),
        (b"", False, "not HTTP"),
    ],
)
async def test_answers(answer: bytes, ready: bool, words: str) -> None:
    seen: list[bytes] = []
    async with server(answer, seen) as spec:
        outcome = await probe(spec)
    assert outcome.ready is ready and words in outcome.describe()
    assert seen[0].startswith(b"GET /v1/models?a=1 HTTP/1.1\r\nHost: 127.0.0.1:")


async def test_nobody_listens_and_nobody_answers(free_port: int) -> None:
    spec = ServiceSpec("x", ToolReference("x"), port=free_port)
    assert "does not listen" in (await probe(spec)).describe()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", free_port):
        assert (await probe(spec, timeout_seconds=0.1)).describe() == "no answer within 0.1 s"


def test_wildcard_addresses_are_probed_on_loopback() -> None:
    assert [probe_address(a) for a in ("0.0.0.0", "::", "", "10.0.0.7")] == [
        "127.0.0.1",
        "::1",
        "127.0.0.1",
        "10.0.0.7",
    ]


@pytest.mark.parametrize(
    ("later", "idle_seconds"),
    [
        (Effort(5.0, 0, 100), 100.0),  # nothing at all
        (Effort(5.5, 0, 100), 100.0),  # heartbeats of a server that waits
        (Effort(60.0, 0, 100), 0.0),  # it computes
        (Effort(5.0, 0, 101), 0.0),  # it logs
        (Effort(5.0, 1 << 30, 100), 0.0),  # it reads a model from disk
        (Effort(1.0, 0, 100), 0.0),  # a worker of it ended and took its seconds along
    ],
)
def test_what_counts_as_progress(later: Effort, idle_seconds: float) -> None:
    meter = ProgressMeter(now=1000.0)
    assert meter.observe(Effort(5.0, 0, 100), 1000.0) == 0.0
    assert meter.observe(later, 1100.0) == idle_seconds
