"""Only what answers here is an endpoint: asked over real sockets."""

import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fleet_controller.endpoints.addresses import KeyReference, ServedModel, Via, Way
from fleet_controller.endpoints.reach import ask, reachable


@contextmanager
def server(answers: dict[str, int]) -> Iterator[str]:
    """Answers each path with its status, others with 404; gives the base URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = answers.get(self.path, 404)
            if status == 0:  # as MLX-LM closes /v1/models while the host has no cache
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{made.server_port}/v1"
        finally:
            made.shutdown()
            thread.join()


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({"/v1/models": 200}, False),
        ({"/v1/models": 401}, True),
        ({"/v1/models": 403}, True),
        ({"/health": 200}, False),
        ({"/v1/models": 0, "/health": 200}, False),
        ({"/v1/models": 503, "/health": 503}, "it answers 503"),
        ({}, "it answers 404"),
    ],
)
def test_a_server_answers_with_its_models_or_its_health(answers: dict[str, int], told: bool | str) -> None:
    with server(answers) as url:
        assert ask(Way(via=Via.LOCAL, base_url=url), "/health") == told


def test_what_nobody_listens_on_does_not_answer() -> None:
    assert ask(Way(via=Via.LOCAL, base_url=free_address()), "/health") == "connection refused"


def test_what_speaks_no_http_is_no_endpoint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                connection.recv(1024)
                connection.sendall(b"SSH-2.0-x\r\n")
                connection.close()

        thread = threading.Thread(target=greet)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        assert ask(Way(via=Via.LOCAL, base_url=url), "/health") == "what answers there does not speak HTTP"
        thread.join()


async def test_the_first_way_that_answers_is_the_endpoint() -> None:
    silent = Way(via=Via.NETWORK, base_url=free_address())
    with server({"/v1/models": 200}) as url:
        forward = Way(via=Via.FORWARD, base_url=url)
        served = ServedModel(model="m", host="h", served_model_name="m", backend="vllm", ways=(silent, forward))
        unreachable = served.model_copy(update={"ways": (silent,)})
        nowhere = served.model_copy(update={"ways": (), "why_none": "it listens on h's own 127.0.0.1:1"})
        guarded = served.model_copy(update={"ways": (forward,), "key": KeyReference(environment="K")})
        found = await reachable([served, unreachable, nowhere, guarded])
    assert [one.base_url for one in found] == [url, "", "", url]
    assert [one.via for one in found] == [Via.FORWARD, None, None, Via.FORWARD]
    assert found[1].reason == f"{silent.base_url}: connection refused"
    assert found[2].reason == "it listens on h's own 127.0.0.1:1"
    assert [one.needs_key for one in found] == [False, False, False, True]
