"""How many tokens a second a server generates now: two readings of what it tells, a moment apart.

Nothing is polled when nobody asks. What servers tell, and when their figures move:
- llama-server's counters of /metrics move only when a request ends, so that a long answer counts nothing and then all
  at once; its /slots tell for each request the tokens decoded so far (read on a build of b11434).
- vLLM's `vllm:generation_tokens_total` moves with every step; SGLang's `sglang:gen_throughput` is a rate itself.
"""

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fleet_agent.problem import ProblemError
from fleet_agent.secrets import SecretStore
from fleet_agent.services.http import get
from fleet_agent.services.model import MetricsProbe, ServiceSpec, ServiceState, ServiceStatus
from fleet_agent.services.readiness import probe_address

INTERVAL_SECONDS = 1.0
# A server that computes may be late with its answer; a listing waits for it no longer than this in all.
LIMIT_SECONDS = 6.0

Fetch = Callable[[], Awaitable[bytes | None]]


@dataclass(frozen=True)
class Reading:
    """tokens: generated so far, by what they are counted for (a request, or the server); rate: as the server says."""

    at_seconds: float
    tokens: Mapping[str, float] = field(default_factory=dict)
    rate: float | None = None


async def with_rates(
    statuses: Sequence[ServiceStatus], secrets: SecretStore, interval_seconds: float = INTERVAL_SECONDS
) -> tuple[ServiceStatus, ...]:
    """The statuses with tokens_per_second where a server tells it. One slow server costs the others nothing."""
    return tuple(await asyncio.gather(*(_with_rate(status, secrets, interval_seconds) for status in statuses)))


async def _with_rate(status: ServiceStatus, secrets: SecretStore, interval_seconds: float) -> ServiceStatus:
    probe = status.spec.metrics
    if probe is None or status.state is not ServiceState.READY:
        return status
    try:
        fetch = _fetcher(status.spec, probe, secrets)
        rate = await asyncio.wait_for(measure(fetch, probe, interval_seconds), LIMIT_SECONDS)
    except (ProblemError, asyncio.TimeoutError, TimeoutError):
        return status
    return replace(status, tokens_per_second=rate)


def _fetcher(spec: ServiceSpec, probe: MetricsProbe, secrets: SecretStore) -> Fetch:
    """Raises ProblemError where the server's key is not on this host."""
    bearer = secrets.read(spec.api_key.secret) if spec.api_key is not None else ""

    async def fetch() -> bytes | None:
        answer = await get(probe_address(spec.bind_address), spec.port, probe.path, bearer)
        return answer.body if answer is not None and answer.status == 200 else None

    return fetch


async def measure(fetch: Fetch, probe: MetricsProbe, interval_seconds: float = INTERVAL_SECONDS) -> float | None:
    """Tokens a second over the interval, or as the server says it; None where it tells nothing."""
    first = await _read(fetch, probe)
    if first is None or first.rate is not None:
        return first.rate if first is not None else None
    await asyncio.sleep(interval_seconds)
    second = await _read(fetch, probe)
    return None if second is None else rate_between(first, second)


async def _read(fetch: Fetch, probe: MetricsProbe) -> Reading | None:
    started = time.monotonic()
    body = await fetch()
    # A busy server answers between two steps: the middle of the call is nearest to when it looked.
    at = (started + time.monotonic()) / 2
    return None if body is None else parse_reading(body, probe, at)


def rate_between(first: Reading, second: Reading) -> float | None:
    """Tokens a second; a request that began in between counts from zero. None where a counter fell: a new process."""
    seconds = second.at_seconds - first.at_seconds
    differences = [tokens - first.tokens.get(name, 0.0) for name, tokens in second.tokens.items()]
    if seconds <= 0 or any(difference < 0 for difference in differences):
        return None
    return sum(differences) / seconds


def parse_reading(body: bytes, probe: MetricsProbe, at_seconds: float) -> Reading | None:
    """What one answer tells: llama-server's slots (a JSON list), or Prometheus text; None where it tells nothing."""
    text = body.decode("utf-8", "replace")
    if text.lstrip()[:1] == "[":
        tokens = parse_slots(text)
        return None if tokens is None else Reading(at_seconds, tokens)
    samples = parse_prometheus(text)
    counter = next((name for name in probe.counters if name in samples), None)
    if counter is not None:
        return Reading(at_seconds, {counter: samples[counter]})
    gauge = next((name for name in probe.gauges if name in samples), None)
    return None if gauge is None else Reading(at_seconds, rate=samples[gauge])


def parse_slots(text: str) -> dict[str, float] | None:
    """Tokens decoded so far, by slot and task, of llama-server's /slots; {} where no slot has work. None: no slots.

    Source: llama.cpp tools/server; `next_token` is an object in older builds, a list in newer ones.
    """
    try:
        slots = json.loads(text)
    except ValueError:
        return None
    if not isinstance(slots, list) or not all(isinstance(slot, dict) and "id" in slot for slot in slots):
        return None
    return {f"{slot['id']}/{slot['id_task']}": tokens for slot in slots if (tokens := _decoded(slot)) is not None}


def _decoded(slot: Mapping[str, Any]) -> float | None:
    """None for a slot that never had a task."""
    if "id_task" not in slot:
        return None
    told = slot.get("next_token")
    parts = told if isinstance(told, list) else [told]
    figures = [part.get("n_decoded") for part in parts if isinstance(part, dict)]
    known = [float(figure) for figure in figures if isinstance(figure, int | float)]
    return sum(known) if known else None


def parse_prometheus(text: str) -> dict[str, float]:
    """Samples by name, summed over their labels (vLLM has one for each engine, SGLang one for each rank)."""
    samples: dict[str, float] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name = line.split("{", 1)[0].split(None, 1)[0]
        rest = line.rpartition("}")[2] if "{" in line else line[len(name) :]
        try:
            value = float(rest.split()[0])
        except (ValueError, IndexError):
            continue
        if math.isfinite(value):
            samples[name] = samples.get(name, 0.0) + value
    return samples
