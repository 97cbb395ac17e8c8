"""A small HTTP GET over loopback, without the TLS that the agent's server process must not load."""

import asyncio
import contextlib
from dataclasses import dataclass

GET_SECONDS = 2.0
LONGEST_BODY_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes


async def get(host: str, port: int, path: str, bearer: str = "", timeout_seconds: float = GET_SECONDS) -> Answer | None:
    """The answer of a GET, or None where nothing that speaks HTTP answers in time. Never raises."""
    try:
        return await asyncio.wait_for(_get(host, port, path, bearer), timeout_seconds)
    except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.TimeoutError, TimeoutError):
        return None


async def _get(host: str, port: int, path: str, bearer: str) -> Answer:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        name = f"[{host}]" if ":" in host else host
        head = f"GET {path} HTTP/1.0\r\nHost: {name}:{port}\r\nConnection: close\r\nAccept: */*\r\n"
        key = f"Authorization: Bearer {bearer}\r\n" if bearer else ""
        writer.write(f"{head}{key}\r\n".encode("latin-1"))
        await writer.drain()
        parts = (await reader.readline()).split(None, 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/"):
            raise ValueError("the answer is not HTTP")
        while (await reader.readline()).strip():
            pass
        return Answer(int(parts[1]), await reader.read(LONGEST_BODY_BYTES))
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
