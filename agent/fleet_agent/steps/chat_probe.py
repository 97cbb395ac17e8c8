"""One real chat completion over loopback: what a user would send, so that "ready" means "answers".

Result: {"text": the reply, "usage": the server's token counts, "seconds": wall time of the request}.
"""

import http.client
import json
import time
from pathlib import Path
from typing import Any

from fleet_agent.jobs.errors import JobProblem, SpecProblem
from fleet_agent.jobs.model import ChatProbeStep
from fleet_agent.steps.context import StepContext
from fleet_agent.steps.loopback import Target, ask, no_answer, target_of

DEFAULT_TIMEOUT_SECONDS = 120.0
DEFAULT_MAX_TOKENS = 32


def check(step: ChatProbeStep) -> None:
    target_of(step.base_url)
    if not step.prompt:
        raise SpecProblem("a chat probe needs a prompt")
    if step.api_key_file and not step.api_key_file.startswith("/"):
        raise SpecProblem(f"api_key_file {step.api_key_file!r} is no absolute path")


async def run(step: ChatProbeStep, context: StepContext) -> dict[str, Any]:
    base = target_of(step.base_url)
    target = Target(base.host, base.port, base.path.rstrip("/") + "/chat/completions")
    return await context.in_thread(_ask, step, target)


def _ask(step: ChatProbeStep, target: Target) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": step.model,
        "messages": [{"role": "user", "content": step.prompt}],
        "max_tokens": step.max_tokens or DEFAULT_MAX_TOKENS,
        "stream": False,
    }
    if step.temperature is not None:
        body["temperature"] = step.temperature
    headers = _authorization(step.api_key_file)
    started = time.monotonic()
    try:
        status, answer = ask(target, step.timeout_seconds or DEFAULT_TIMEOUT_SECONDS, body, headers)
    except (OSError, http.client.HTTPException) as error:
        raise no_answer(target, error) from None
    seconds = time.monotonic() - started
    if status != 200:
        said = answer[:300].decode(errors="replace")
        raise JobProblem("chat-failed", f"the server answers a chat with HTTP {status}: {said}", "see `fleet logs`")
    return {**parse_reply(answer), "seconds": round(seconds, 3)}


def parse_reply(answer: bytes) -> dict[str, Any]:
    """Text and usage of an OpenAI-style reply. A reasoning model may spend all tokens on its reasoning.

    Raises JobProblem "chat-failed" where there is no text at all.
    """
    try:
        document = json.loads(answer)
        message = document["choices"][0]["message"]
        text = message.get("content") or message.get("reasoning_content") or message.get("reasoning") or ""
    except (ValueError, LookupError, TypeError, AttributeError):
        said = answer[:200].decode(errors="replace")
        raise JobProblem(
            "chat-failed", f"the server's reply is no chat completion: {said}", "see `fleet logs`"
        ) from None
    if not isinstance(text, str) or not text:
        raise JobProblem("chat-failed", "the server's reply to a chat is empty", "see `fleet logs`")
    return {"text": text, "usage": document.get("usage") or {}}


def _authorization(api_key_file: str) -> dict[str, str]:
    if not api_key_file:
        return {}
    try:
        return {"Authorization": f"Bearer {Path(api_key_file).read_text().strip()}"}
    except OSError as error:
        message = f"cannot read the server's API key in {api_key_file}: {error.strerror}"
        raise JobProblem("no-secret", message, "repeat the deploy: it puts the key there again") from None
