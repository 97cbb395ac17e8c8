"""Tokens a second: what captured answers say, and the real llama-server while it generates and while it is idle."""

import asyncio
import json
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from fleet_agent.layout import Layout
from fleet_agent.secrets import SecretStore
from fleet_agent.server.services import ServiceCalls
from fleet_agent.services.model import (
    ApiKey,
    DesiredState,
    MetricsProbe,
    ServiceSpec,
    ServiceState,
    ServiceStatus,
    ToolReference,
)
from fleet_agent.services.rates import (
    Reading,
    measure,
    parse_prometheus,
    parse_reading,
    parse_slots,
    rate_between,
    with_rates,
)
from fleet_proto.v1 import services_pb2
from support.service_host import running, until
from support.tiny_model import make_tiny_model

SLOTS = MetricsProbe("/slots")


def slot(number: int, task: int | None, decoded: int = 0) -> dict[str, object]:
    """The part that counts of what a build of b11434 answers."""
    document: dict[str, object] = {"id": number, "n_ctx": 2048, "speculative": False, "is_processing": task is not None}
    if task is not None:
        document |= {"id_task": task, "next_token": [{"has_next_token": True, "n_remain": 9, "n_decoded": decoded}]}
    return document


def slots(*parts: dict[str, object]) -> bytes:
    return json.dumps(parts).encode()


def reading(at: float, *parts: dict[str, object]) -> Reading:
    found = parse_reading(slots(*parts), SLOTS, at)
    assert found is not None
    return found


def test_slots_count_what_each_request_has_decoded() -> None:
    first = reading(10.0, slot(0, 7, 100), slot(1, None))
    second = reading(12.0, slot(0, 7, 180), slot(1, 9, 20))
    assert rate_between(first, second) == 50.0


def test_a_new_request_in_the_same_slot_counts_from_zero() -> None:
    assert rate_between(reading(0.0, slot(0, 1, 900)), reading(1.0, slot(0, 2, 30))) == 30.0


def test_idle_slots_are_zero_and_not_unknown() -> None:
    idle = reading(0.0, slot(0, None), slot(1, None))
    assert rate_between(idle, reading(1.0, slot(0, None), slot(1, None))) == 0.0


def test_a_finished_request_that_its_slot_still_shows_counts_once() -> None:
    assert rate_between(reading(0.0, slot(0, 1, 900)), reading(1.0, slot(0, 1, 900))) == 0.0


def test_older_builds_tell_the_next_token_without_a_list() -> None:
    old = {"id": 0, "id_task": 3, "is_processing": True, "next_token": {"n_decoded": 12}}
    assert parse_slots(json.dumps([old])) == {"0/3": 12.0}


@pytest.mark.parametrize("text", ["{}", "[1]", "not json", '[{"name": 1}]'])
def test_what_are_no_slots(text: str) -> None:
    assert parse_slots(text) is None


# vllm/v1/metrics/loggers.py of vLLM 0.26.0 names the counter, and has one engine label each.
VLLM = """# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m {1}"} %d.0
vllm:generation_tokens_total{engine="1",model_name="m"} 5.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} NaN
"""


def test_counters_are_summed_over_engines() -> None:
    probe = MetricsProbe("/metrics", ("other:absent_total", "vllm:generation_tokens_total"))
    first, second = (parse_reading((VLLM % count).encode(), probe, at) for count, at in ((100, 1.0), (160, 3.0)))
    assert first is not None and second is not None and rate_between(first, second) == 30.0
    assert "vllm:kv_cache_usage_perc" not in parse_prometheus(VLLM % 1)


def test_a_counter_that_fell_is_another_process() -> None:
    assert rate_between(Reading(0.0, {"n": 50.0}), Reading(1.0, {"n": 3.0})) is None


async def test_a_gauge_needs_one_reading() -> None:
    asked = []

    async def fetch() -> bytes:
        asked.append(1)
        return b'# TYPE sglang:gen_throughput gauge\nsglang:gen_throughput{tp_rank="0"} 41.5\n'

    assert await measure(fetch, MetricsProbe("/metrics", (), ("sglang:gen_throughput",)), 60.0) == 41.5
    assert len(asked) == 1


async def test_what_the_server_does_not_tell_is_absent() -> None:
    async def fetch() -> bytes:
        return b"process_cpu_seconds_total 1.0\n"

    assert await measure(fetch, MetricsProbe("/metrics", ("vllm:generation_tokens_total",)), 0.0) is None


class Told:
    """A server of one page on loopback; it answers once `open` is set, and keeps the keys it was shown."""

    def __init__(self, body: bytes) -> None:
        self.open, self.keys = Event(), []  # type: ignore[var-annotated]
        self.open.set()
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                told.keys.append(self.headers.get("Authorization", ""))
                told.open.wait(30)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *words: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.open.set()
        self._server.shutdown()
        self._server.server_close()


GAUGE = MetricsProbe("/metrics", (), ("rate",))


def status(port: int, state: ServiceState = ServiceState.READY, **fields: object) -> ServiceStatus:
    spec = ServiceSpec("a", ToolReference("x"), port=port, metrics=GAUGE, **fields)  # type: ignore[arg-type]
    return ServiceStatus(spec, state, DesiredState.RUNNING, "")


async def test_a_server_that_hangs_delays_no_other_and_a_stopped_one_is_not_asked(tmp_path: Path) -> None:
    quick, hanging = Told(b"rate 3.5\n"), Told(b"rate 1\n")
    hanging.open.clear()
    try:
        statuses = [status(hanging.port), status(quick.port), status(quick.port, ServiceState.STARTING)]
        measured = await asyncio.wait_for(with_rates(statuses, SecretStore(tmp_path)), 30)
        assert [one.tokens_per_second for one in measured] == [None, 3.5, None]
        assert len(quick.keys) == 1
    finally:
        quick.close()
        hanging.close()


async def test_the_key_comes_from_the_secret_store(tmp_path: Path) -> None:
    told, store = Told(b"rate 2\n"), SecretStore(tmp_path / "secrets")
    store.put("a-key", b"sesame")
    try:
        with_key = status(told.port, api_key=ApiKey("a-key", environment="KEY"))
        without = status(told.port, api_key=ApiKey("not-there", environment="KEY"))
        measured = await with_rates([with_key, without], store)
        assert [one.tokens_per_second for one in measured] == [2.0, None]
        assert told.keys == ["Bearer sesame"]
    finally:
        told.close()


@pytest.mark.llama_cpp
async def test_the_real_llama_server_generating_and_idle(
    llama_layout: Layout, llama_spec: Callable[..., ServiceSpec], tmp_path: Path
) -> None:
    gguf = make_tiny_model(tmp_path / "tiny").gguf_path
    spec = replace(llama_spec(gguf, "-c", "16384"), metrics=SLOTS)
    async with running(llama_layout) as supervisor:
        calls = ServiceCalls(supervisor, SecretStore.of(llama_layout))
        await supervisor.apply(spec)
        await until(supervisor, ServiceState.READY)

        async def rate(asked: bool = True) -> float | None:
            reply = await calls.ListServices(services_pb2.ListServicesRequest(measure_rates=asked), None)
            (told,) = reply.services
            return told.tokens_per_second if told.HasField("tokens_per_second") else None

        assert await rate() == 0.0
        assert await rate(asked=False) is None
        generating = asyncio.create_task(asyncio.to_thread(stream_forever, spec.port))
        connection = await generating
        try:
            now = await rate()
            assert now is not None and now > 0
        finally:
            connection.close()
        await supervisor.stop("tiny")


def stream_forever(port: int) -> urllib.request.http.client.HTTPResponse:  # type: ignore[name-defined]
    """A request without an end, once its first token has come."""
    body = json.dumps({"prompt": "a", "n_predict": -1, "ignore_eos": True, "stream": True}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/completion", body, {"Content-Type": "application/json"})
    answer = urllib.request.urlopen(request, timeout=30)
    assert answer.readline().startswith(b"data:")
    return answer
