"""HTTP to a server on this very machine: no proxy, no redirect, nothing but loopback."""

import http.client
import json
import urllib.parse
from dataclasses import dataclass
from typing import Any

from fleet_agent.addresses import is_loopback
from fleet_agent.jobs.errors import JobProblem, SpecProblem

ANSWER_BYTES = 8 << 20


@dataclass(frozen=True)
class Target:
    host: str
    port: int
    path: str


def target_of(url: str) -> Target:
    """Raises SpecProblem for anything but http to a loopback address with a port."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "http" or port is None or parts.username is not None or not is_loopback(host):
        raise SpecProblem(f"{url!r} is no http URL of this machine", 'like "http://127.0.0.1:8080/health"')
    return Target(host, port, parts.path or "/")


def ask(
    target: Target, timeout_seconds: float, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """(status, body) of a GET, or of a POST where a JSON body is given. Raises OSError or HTTPException."""
    connection = http.client.HTTPConnection(target.host, target.port, timeout=timeout_seconds)
    try:
        sent = None if body is None else json.dumps(body).encode()
        more = {} if sent is None else {"Content-Type": "application/json"}
        connection.request("GET" if sent is None else "POST", target.path, sent, {**more, **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read(ANSWER_BYTES)
    finally:
        connection.close()


def no_answer(target: Target, error: Exception) -> JobProblem:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return JobProblem(
        "no-answer",
        f"nothing answers on {target.host}:{target.port}: {reason}",
        "see `fleet logs` for the server's words",
    )
