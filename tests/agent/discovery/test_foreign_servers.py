"""Model servers of others: told apart by what they answer, and from ours by their processes; only looked at."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from fleet_agent.discovery import identify as identification
from fleet_agent.discovery.identify import Identity, identify
from fleet_agent.discovery.listeners import Listener, find_listeners, parse_socket_table, program_name
from fleet_agent.discovery.servers import ForeignServer, OwnServers, find_servers
from support.tiny_model import TinyModel, make_tiny_model

DATA = Path(__file__).parent / "data"
PATIENT = 60.0
NOTHING_OURS = OwnServers()
Pages = dict[str, tuple[int, str]]


def page(name: str, status: int = 200) -> tuple[int, str]:
    """A captured answer of a real server."""
    return status, (DATA / name).read_text(encoding="utf-8")


UNAUTHORIZED = (401, '{"error": "Unauthorized"}')
OPENAI_LIST = (200, '{"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "somebody"}]}')
VLLM: Pages = {"/v1/models": page("vllm.models.json"), "/version": page("vllm.version.json")}
SGLANG: Pages = {"/v1/models": page("sglang.v1_models.json"), "/server_info": page("sglang.server_info.json")}


class StandIn:
    """A server of fixed pages on loopback; it keeps what it was asked."""

    def __init__(self, pages: Pages, server: str = "uvicorn", host: str = "127.0.0.1") -> None:
        self.requests: list[str] = []
        told = self

        class Handler(BaseHTTPRequestHandler):
            def parse_request(self) -> bool:
                good = super().parse_request()
                told.requests.append(f"{self.command} {self.path}")
                return good

            def do_GET(self) -> None:
                status, text = pages.get(self.path, (404, '{"detail": "Not Found"}'))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def version_string(self) -> str:
                return server

            def log_message(self, *words: object) -> None: ...

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self.port = self._server.server_port
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def stand_in() -> Iterator[Callable[..., StandIn]]:
    made: list[StandIn] = []

    def make(pages: Pages, server: str = "uvicorn", host: str = "127.0.0.1") -> StandIn:
        made.append(StandIn(pages, server, host))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(
    ("pages", "server", "expected"),
    [
        (VLLM, "uvicorn", Identity("vllm", "0.32.0", ("tiny-chain",))),
        ({**VLLM, "/v1/models": UNAUTHORIZED}, "uvicorn", Identity("vllm", "0.32.0", (), True)),
        (SGLANG, "uvicorn", Identity("sglang", "0.5.23", ("tiny-chain",))),
        (
            {"/v1/models": page("sglang.v1_models.json"), "/get_server_info": page("sglang.server_info.json")},
            "uvicorn",
            Identity("sglang", "0.5.23", ("tiny-chain",)),
        ),
        (
            {"/v1/models": UNAUTHORIZED, "/server_info": UNAUTHORIZED, "/version": (404, "{}")},
            "uvicorn",
            Identity("", "", (), True),
        ),
        (
            {"/v1/models": page("mlx_lm.server.models.json")},
            "BaseHTTP/0.6 Python/3.11.2",
            Identity("mlx-lm", "", ("run/models/chain/hf",)),
        ),
        (
            {"/v1/models": OPENAI_LIST, "/lmstudio-greeting": (200, '{"lmstudio":true}')},
            "",
            Identity("lm-studio", "", ("m",)),
        ),
        (
            {"/v1/models": OPENAI_LIST, "/": (200, "Ollama is running"), "/api/version": (200, '{"version":"0.5.1"}')},
            "",
            Identity("ollama", "0.5.1", ("m",)),
        ),
        (
            {"/v1/models": page("llama-server.v1_models.json"), "/props": UNAUTHORIZED},
            "llama.cpp",
            Identity("llama.cpp", "", ("tiny-chain",), True),
        ),
        ({"/v1/models": OPENAI_LIST}, "gateway", Identity("", "", ("m",))),
    ],
    ids=[
        "vllm",
        "vllm with a key",
        "sglang",
        "older sglang",
        "sglang with a key",
        "mlx-lm",
        "lm studio",
        "ollama",
        "llama.cpp with a key",
        "a gateway",
    ],
)
async def test_engines_by_their_answers(
    stand_in: Callable[..., StandIn], pages: Pages, server: str, expected: Identity
) -> None:
    there = stand_in(pages, server)
    assert await identify("127.0.0.1", there.port) == expected
    assert there.requests and all(request.startswith("GET ") for request in there.requests)


@pytest.mark.parametrize(
    "pages",
    [
        {},
        {"/v1/models": (200, "<html>a page for every path</html>")},
        {"/v1/models": (200, "[" * 100_000)},
        {"/v1/models": (200, '{"data": "none"}')},
        {"/v1/models": (200, '{"data": [{"id": 7}]}')},
        {"/v1/models": (401, "<html>log in</html>")},
        {"/v1/models": (503, '{"error": {"message": "Loading model"}}')},
        {"/v1/models": (200, "x" * (5 << 20))},
    ],
    ids=["nothing", "web page", "deep", "no list", "odd ids", "log-in page", "loading", "endless"],
)
async def test_what_is_no_model_server_is_not_listed(stand_in: Callable[..., StandIn], pages: Pages) -> None:
    assert await identify("127.0.0.1", stand_in(pages).port) is None


async def test_a_stranger_cannot_write_on_our_terminal(stand_in: Callable[..., StandIn]) -> None:
    evil = json.dumps({"data": [{"id": "m\x1b[2J\nx", "owned_by": "vllm"}]})
    found = await identify("127.0.0.1", stand_in({"/v1/models": (200, evil)}).port)
    assert found is not None and found.models == ("m[2Jx",)


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", bytes(range(256)) * 40, b"HTTP/1.1 200 OK\r\nA: b"])
async def test_other_protocols_and_silence_are_bounded(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said at once, and then nothing more, with the connection held open."""
    monkeypatch.setattr(identification, "GET_SECONDS", 0.3)
    connections: list[asyncio.StreamWriter] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        writer.write(said)
        await reader.read()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        assert await asyncio.wait_for(identify("127.0.0.1", port), PATIENT) is None
    finally:
        server.close()
        for writer in connections:
            writer.close()


async def test_a_server_that_trickles_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identification, "GET_SECONDS", 0.3)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.02)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        assert await asyncio.wait_for(identify("127.0.0.1", port), PATIENT) is None
    finally:
        server.close()


# --- whose it is ---


async def test_user_program_and_process_of_a_stranger(stand_in: Callable[..., StandIn]) -> None:
    there = stand_in(VLLM)
    (found,) = await find_servers([there.port], NOTHING_OURS)
    assert (found.port, found.backend, found.pid, found.address) == (there.port, "vllm", os.getpid(), "127.0.0.1")
    assert found.command.startswith("python") and found.user


async def test_ours_is_told_by_process_and_not_by_port(stand_in: Callable[..., StandIn]) -> None:
    there = stand_in(VLLM)
    assert await find_servers([there.port], OwnServers(pids=frozenset({os.getpid()}))) == ()
    (stranger,) = await find_servers([there.port], OwnServers(pids=frozenset({1}), ports=frozenset({there.port})))
    assert stranger.pid == os.getpid()
    assert await find_servers([there.port], OwnServers(shared_ports=frozenset({there.port}))) == ()


async def test_a_server_on_another_address_of_this_host_is_found(stand_in: Callable[..., StandIn]) -> None:
    there = stand_in(VLLM, host="127.0.0.9")
    (found,) = await find_servers([there.port], NOTHING_OURS)
    assert (found.address, found.backend) == ("127.0.0.9", "vllm")


async def test_a_port_that_nobody_has() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # bound, and not listening
        assert await find_servers([probe.getsockname()[1]], NOTHING_OURS) == ()


# /proc/net/tcp and tcp6: a listener of uid 1000 on loopback, one of root on all addresses, a connection.
TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 41234 1 0000 100 0 0 10 0
   1: 00000000:2BFA 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 41235 1 0000 100 0 0 10 0
   2: 0100007F:1F90 0100007F:A000 01 00000000:00000000 00:00000000 00000000  1000        0 41236 1 0000 20 4 30 10 -1
"""
TCP6 = """  sl  local_address                         remote_address                        st tx rx tr tm
   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 0:0 00:0 0 1001 0 51 1 0
   1: 0000000000000000FFFF00000100007F:1F90 00000000000000000000000000000000:0000 0A 0:0 00:0 0 1001 0 52 1 0
"""


@pytest.mark.skipif(sys.byteorder != "little", reason="captured on a little-endian host")
def test_socket_tables() -> None:
    assert parse_socket_table(TCP, {8080}) == [Listener("127.0.0.1", 8080, 1000, 41234)]
    (root,) = parse_socket_table(TCP, {11258})
    assert (root.address, root.reached_at, root.user_id) == ("0.0.0.0", "127.0.0.1", 0)
    assert [one.address for one in parse_socket_table(TCP6, {8080})] == ["::1", "127.0.0.1"]


def test_a_socket_is_found_with_its_owner() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        (found,) = find_listeners({listening.getsockname()[1]})
    assert (found.pid, found.user_id, found.address) == (os.getpid(), os.getuid(), "127.0.0.1")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["/opt/llama.cpp/llama-server", "--api-key", "secret"], "llama-server"),
        (["/venv/bin/python3.12", "-m", "mlx_lm", "server"], "python3.12 -m mlx_lm"),
        (["/venv/bin/python3", "-u", "/venv/bin/vllm", "serve"], "python3 vllm"),
        (["python3", "-c", "secret"], "python3"),
        (["VLLM::EngineCore", "", ""], "VLLM::EngineCore"),
        ([""], ""),
    ],
)
def test_programs_without_their_arguments(words: list[str], name: str) -> None:
    assert program_name(words) == name


# --- real engines ---


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_it_answers(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + PATIENT
    while True:
        assert process.poll() is None and time.monotonic() < deadline
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)  # a program that is no child of asyncio's: there is no event to wait for


def started(argv: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(argv, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)


async def found_while_it_runs(argv: list[str], port: int, **environment: str) -> tuple[ForeignServer, int]:
    process = await asyncio.to_thread(started, argv, environment)
    try:
        await asyncio.to_thread(wait_until_it_answers, process, port)
        (found,) = await find_servers([port], NOTHING_OURS)
        assert process.poll() is None
        return found, process.pid
    finally:
        process.kill()
        process.wait()


@pytest.mark.llama_cpp
async def test_the_real_llama_server(llama_cpp_bin: Path, tiny: TinyModel) -> None:
    port = free_port()
    argv = [str(llama_cpp_bin / "llama-server"), "-m", str(tiny.gguf_path), "--port", str(port), "-c", "512"]
    found, pid = await found_while_it_runs([*argv, "--alias", "mine"], port)
    assert (found.backend, found.models, found.needs_key) == ("llama.cpp", ("mine",), False)
    assert (found.pid, found.command) == (pid, "llama-server") and found.version
    guarded, _ = await found_while_it_runs([*argv, "--api-key", "sesame"], port)
    assert (guarded.backend, guarded.needs_key, guarded.command) == ("llama.cpp", True, "llama-server")


@pytest.mark.mlx
async def test_the_real_mlx_lm_server(tmp_path: Path, tiny: TinyModel) -> None:
    python = await asyncio.to_thread(install_mlx_lm, tmp_path)
    port = free_port()
    (tmp_path / "hf" / "hub").mkdir(parents=True)
    argv = [str(python), "-m", "mlx_lm", "server", "--model", str(tiny.hf_dir), "--port", str(port)]
    found, pid = await found_while_it_runs(argv, port, HF_HOME=str(tmp_path / "hf"))
    assert (found.backend, found.pid) == ("mlx-lm", pid)
    assert found.command.endswith("-m mlx_lm")


def install_mlx_lm(folder: Path) -> Path:
    own = Path(sys.executable).parent / "uv"
    uv = str(own) if own.exists() else shutil.which("uv")
    assert uv is not None
    options: dict[str, Any] = {"check": True, "capture_output": True, "timeout": 600}
    subprocess.run([uv, "venv", "--python", sys.executable, str(folder / "venv")], **options)
    python = folder / "venv" / "bin" / "python3"
    packages = ("mlx-lm==0.32.2", "mlx[cpu]==0.32.4") if sys.platform == "linux" else ("mlx-lm==0.32.2",)
    subprocess.run([uv, "pip", "install", "--python", str(python), *packages], **options)
    return python
