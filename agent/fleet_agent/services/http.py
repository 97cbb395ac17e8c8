"""A small HTTP GET, without the TLS that the agent's server process must not load.

What answers may be anything that listens on a port: time, header lines and bytes are bounded.
"""

import asyncio
import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

GET_SECONDS = 2.0
LONGEST_BODY_BYTES = 4 * 1024 * 1024
_MOST_HEADERS = 100
_PATH = re.compile(r"/[!-~]*\Z")


@dataclass(frozen=True)
class Answer:
    """headers by lower-case name."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


async def get(host: str, port: int, path: str, bearer: str = "", timeout_seconds: float = GET_SECONDS) -> Answer | None:
    """The answer of a GET, or None where nothing that speaks HTTP answers in time. Never raises."""
    try:
        return await asyncio.wait_for(_get(host, port, path, bearer), timeout_seconds)
    except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.TimeoutError, TimeoutError):
        return None


async def _get(host: str, port: int, path: str, bearer: str) -> Answer:
    if not _PATH.match(path):
        raise ValueError("the path is not a URL path")
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
        headers = await _headers(reader)
        return Answer(int(parts[1]), await _body(reader, headers), headers)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _headers(reader: asyncio.StreamReader) -> dict[str, str]:
    headers: dict[str, str] = {}
    for _ in range(_MOST_HEADERS):
        line = await reader.readline()
        if not line.strip():
            return headers
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    raise ValueError("the answer has no end of headers")


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    """Up to the length that the server says, or its end. Raises ValueError for one that is too long."""
    said = headers.get("content-length", "")
    wanted = int(said) if said.isdigit() else None
    body = bytearray()
    while wanted is None or len(body) < wanted:
        block = await reader.read(1 << 16)
        if not block:
            break
        body += block
        if len(body) > LONGEST_BODY_BYTES:
            raise ValueError("the answer is too long")
    return bytes(body)
