"""Which engine answers at an address: a few GETs, never anything else, bounded in time and bytes.

| engine | tells itself by | version | source |
|---|---|---|---|
| llama.cpp | header "Server: llama.cpp", owned_by "llamacpp" | /props build_info | captured (samples/llama-server.*) |
| vLLM | owned_by "vllm"; /version | /version | captured (samples/vllm.*) |
| SGLang | owned_by "sglang"; /server_info, /get_server_info | there | captured (samples/sglang.*) |
| LM Studio | /lmstudio-greeting | not told | its command line's source |
| MLX-LM | Server header of Python's http.server, models without an owner | not told | captured (samples/mlx_lm.*) |
| Ollama | / says "Ollama is running"; owned_by "library" | /api/version | its documentation |
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fleet_agent.services.http import GET_SECONDS, Answer, get

# All the questions to one server together; each of them has GET_SECONDS.
IDENTIFY_SECONDS = 6.0
_LONGEST_TEXT = 200
_MOST_MODELS = 100
_REFUSED = (401, 403)


@dataclass(frozen=True)
class Identity:
    """backend and version are "" where the server does not say them."""

    backend: str = ""
    version: str = ""
    models: tuple[str, ...] = ()
    needs_key: bool = False


class Conversation:
    """GETs to one server under one deadline; remembers whether any was refused for want of a key."""

    def __init__(self, host: str, port: int, limit_seconds: float = IDENTIFY_SECONDS) -> None:
        self._host, self._port = host, port
        self._deadline = time.monotonic() + limit_seconds
        self.refused = False

    async def ask(self, path: str) -> Answer | None:
        left = min(self._deadline - time.monotonic(), GET_SECONDS)
        answer = await get(self._host, self._port, path, timeout_seconds=left) if left > 0 else None
        if answer is not None and answer.status in _REFUSED and _object(answer) is not None:
            self.refused = True
        return answer

    async def document(self, path: str) -> Mapping[str, Any] | None:
        answer = await self.ask(path)
        return _object(answer) if answer is not None and answer.status == 200 else None


async def identify(host: str, port: int) -> Identity | None:
    """Who answers; None for what is no model server (a web page, another protocol, silence)."""
    talk = Conversation(host, port)
    models = await talk.ask("/v1/models")
    if models is None:
        return None
    document = _object(models)
    entries = _entries(document) if models.status == 200 else None
    if entries is None and not talk.refused:
        return None  # also for an engine that is still loading: it is found once it can serve
    backend, version = await _who(talk, models, entries or [])
    return Identity(backend, version, tuple(_text(entry["id"]) for entry in entries or []), talk.refused)


async def _who(talk: Conversation, models: Answer, entries: list[Mapping[str, Any]]) -> tuple[str, str]:
    owners = {str(entry.get("owned_by", "")) for entry in entries}
    server = models.headers.get("server", "").lower()
    if server.startswith("llama.cpp") or "llamacpp" in owners:
        return "llama.cpp", _named(await talk.document("/props"), "build_info")
    if "sglang" not in owners and "vllm" in owners:
        return "vllm", _named(await talk.document("/version"), "version")
    if "sglang" in owners:
        return "sglang", await _sglang_version(talk)
    return await _by_asking(talk, server, entries)


async def _by_asking(talk: Conversation, server: str, entries: list[Mapping[str, Any]]) -> tuple[str, str]:
    """For servers that do not say who they are in their list of models, or show none without a key."""
    greeting = await talk.document("/lmstudio-greeting")
    if greeting is not None and greeting.get("lmstudio") is True:
        return "lm-studio", ""
    root = await talk.ask("/")
    if root is not None and root.body.strip() == b"Ollama is running":
        return "ollama", _named(await talk.document("/api/version"), "version")
    if server.startswith("basehttp/") and entries and not any("owned_by" in entry for entry in entries):
        return "mlx-lm", ""
    version = _named(await talk.document("/version"), "version")  # vLLM shows it without the key
    if version:
        return "vllm", version
    version = await _sglang_version(talk)
    return ("sglang", version) if version else ("", "")


async def _sglang_version(talk: Conversation) -> str:
    for path in ("/server_info", "/get_server_info"):
        version = _named(await talk.document(path), "version")
        if version:
            return version
    return ""


def _object(answer: Answer) -> Mapping[str, Any] | None:
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _entries(document: Mapping[str, Any] | None) -> list[Mapping[str, Any]] | None:
    """The models of an OpenAI list; None where it is none."""
    data = document.get("data") if document is not None else None
    if not isinstance(data, list) or not all(isinstance(one, dict) and isinstance(one.get("id"), str) for one in data):
        return None
    return data[:_MOST_MODELS]


def _named(document: Mapping[str, Any] | None, name: str) -> str:
    value = document.get(name) if document is not None else None
    return _text(value) if isinstance(value, str) else ""


def _text(value: str) -> str:
    """A stranger's words on our terminals: one printable line of a bounded length."""
    return "".join(character for character in value if character.isprintable())[:_LONGEST_TEXT]
