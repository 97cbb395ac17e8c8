"""One chat completion of an OpenAI-compatible server, as it streams. Standard library only."""

import http.client
import json
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PROBLEM_CHARACTERS = 300


class Refused(Exception):
    """The server will not answer this request, however often it is asked (HTTP 400, 413, 422)."""


class Misdirected(Exception):
    """No request of this kind can be answered there: a wrong key, model or address."""


class Unavailable(Exception):
    """The server did not answer to the end: it may later."""


@dataclass(frozen=True)
class Server:
    """`base_url` without /v1; `key` "" = it asks for none."""

    base_url: str
    model: str
    key: str = ""


@dataclass(frozen=True)
class Sampling:
    """None = not sent. `max_tokens` is that of the answer, thinking included."""

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        said = {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        more = {"stop": list(self.stop)} if self.stop else {}
        return {
            "max_tokens": self.max_tokens,
            **{name: value for name, value in said.items() if value is not None},
            **more,
        }


@dataclass
class Completion:
    text: str = ""
    finish: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)


def complete(
    server: Server, messages: Sequence[Mapping[str, str]], sampling: Sampling, stall_seconds: float
) -> Completion:
    """The whole answer. Raises Refused, Misdirected or Unavailable; a silence of `stall_seconds` is the last."""
    parts = urllib.parse.urlsplit(server.base_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=stall_seconds)
    body = {
        "model": server.model,
        "messages": list(messages),
        "stream": True,
        "stream_options": {"include_usage": True},
        **sampling.fields(),
    }
    headers = {"Content-Type": "application/json"}
    if server.key:
        headers["Authorization"] = f"Bearer {server.key}"
    path = f"{parts.path.rstrip('/')}/v1/chat/completions"
    try:
        connection.request("POST", path, json.dumps(body).encode(), headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise _refusal(answer.status, answer.read(1 << 16))
        if "text/event-stream" not in (answer.getheader("Content-Type") or ""):
            return _whole(json.loads(answer.read()))
        return _streamed(answer)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unavailable(f"{type(error).__name__}: {error}") from None
    finally:
        connection.close()


def _refusal(status: int, body: bytes) -> Exception:
    said = f"HTTP {status}: {body[:PROBLEM_CHARACTERS].decode(errors='replace').strip()}"
    if status in (400, 413, 422):
        return Refused(said)
    return Misdirected(said) if status in (401, 403, 404, 405) else Unavailable(said)


def _whole(document: Mapping[str, Any]) -> Completion:
    choice = _first_choice(document)
    message = choice.get("message") or {}
    return Completion(message.get("content") or "", choice.get("finish_reason") or "", document.get("usage") or {})


def _streamed(answer: http.client.HTTPResponse) -> Completion:
    """Server-sent events up to [DONE]. A stream that ends before a finish reason was cut off: Unavailable."""
    completion = Completion()
    pieces: list[str] = []
    while line := answer.readline():
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            break
        event = json.loads(data)
        if event.get("error"):
            raise Unavailable(f"the server broke off: {json.dumps(event['error'])[:PROBLEM_CHARACTERS]}")
        choice = _first_choice(event)
        pieces.append((choice.get("delta") or {}).get("content") or "")
        completion.finish = choice.get("finish_reason") or completion.finish
        completion.usage = event.get("usage") or completion.usage
    if not completion.finish:
        raise Unavailable("the answer ended before it was finished")
    completion.text = "".join(pieces)
    return completion


def _first_choice(document: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = document.get("choices") or [{}]
    first: Mapping[str, Any] = choices[0]
    return first
