"""A replace seen by somebody who asks the model all the time: on another port, on its own, and one that fails."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.fleet_world import FleetWorld, fleet_world
from support.tiny_model import make_tiny_model

pytestmark = pytest.mark.llama_cpp

MODEL = "tiny-replace"
PORT, OTHER_PORT = 18900, 18901


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetWorld]:
    with fleet_world(tmp_path_factory.mktemp("fleet")) as world:
        world.local_hosts("desk")
        world.up("desk")
        make_tiny_model(world.folder, "chain").gguf_path.rename(world.folder / f"{MODEL}.gguf")
        yield world


@pytest.fixture
def deploy(fleet: FleetWorld, llama_cpp_bin: Path) -> Iterator[Callable[..., list[str]]]:
    def command(*more: str, engine: Path = llama_cpp_bin) -> list[str]:
        return ["deploy", str(fleet.folder / f"{MODEL}.gguf"), "--quant", "F16", "--backend", "llama.cpp",
                "--engine-path", str(engine), "--hosts", "desk", "--yes", *more]  # fmt: skip

    fleet.document(*command("--port", str(PORT), "--context", "512"))
    yield command
    fleet.run("stop", "--all", "--remove", "--yes", code=None)


class Client:
    """Asks without a pause, at the first of the ports where somebody answers; keeps the outcome of each question."""

    def __init__(self, *ports: int) -> None:
        self.outcomes: list[bool] = []
        self.over = threading.Event()
        self._ports = ports
        self._thread = threading.Thread(target=self._ask_on, daemon=True)

    @contextmanager
    def asking(self) -> Iterator[None]:
        self._thread.start()
        try:
            self.wait_for_answers(3)
            yield
            self.wait_for_answers(3)
        finally:
            self.over.set()
            self._thread.join(60)

    def wait_for_answers(self, count: int) -> None:
        wanted, deadline = sum(self.outcomes) + count, time.monotonic() + 60
        while sum(self.outcomes) < wanted:
            assert time.monotonic() < deadline, "nobody answers"
            time.sleep(0.01)

    @property
    def failures(self) -> int:
        return self.outcomes.count(False)

    @property
    def gaps(self) -> int:
        """How often it stopped answering."""
        return sum(before and not after for before, after in zip(self.outcomes, self.outcomes[1:], strict=False))

    def _ask_on(self) -> None:
        while not self.over.is_set():
            answered = any(ask(port) for port in self._ports)
            self.outcomes.append(answered)
            if not answered:
                time.sleep(0.01)


def ask(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/v1/completions", json.dumps({"prompt": "Which", "max_tokens": 2}),
                           {"Content-Type": "application/json"})  # fmt: skip
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def service(fleet: FleetWorld) -> Any:
    ((found,),) = [entry["services"] for entry in fleet.document("ps", "desk", "--quick")["hosts"]]
    return found


def test_on_another_port_nobody_notices(fleet: FleetWorld, deploy: Callable[..., list[str]]) -> None:
    moved = deploy("--port", str(OTHER_PORT), "--context", "1024")
    said = fleet.run(*moved, "--dry-run").stdout
    assert f"desk: the old server goes on until the new one is ready on port {OTHER_PORT}\n" in said
    client = Client(PORT, OTHER_PORT)
    with client.asking():
        events = fleet.run(*moved).stderr
    assert f"{MODEL} starts beside the old server" in events
    assert client.failures == 0, client.outcomes
    assert (service(fleet)["spec"]["port"], service(fleet)["spec"]["context_length"]) == (OTHER_PORT, 1024)
    assert not ask(PORT)


def test_on_its_own_port_there_is_one_gap(fleet: FleetWorld, deploy: Callable[..., list[str]]) -> None:
    replaced = deploy("--context", "1024")
    said = fleet.run(*replaced, "--dry-run").stdout
    assert "proven on another port first; then a gap while it starts on 18900" in said
    client = Client(PORT)
    with client.asking():
        events = fleet.run(*replaced).stderr
    assert "starts beside the old server, for a trial on port" in events
    assert client.gaps == 1, client.outcomes
    found = service(fleet)
    assert (found["spec"]["port"], found["spec"]["context_length"], found["restarts"]) == (PORT, 1024, 0)


@pytest.mark.parametrize("port", [PORT, OTHER_PORT])
def test_one_that_does_not_start_costs_no_answer(
    fleet: FleetWorld, deploy: Callable[..., list[str]], port: int, tmp_path: Path
) -> None:
    for name in ("llama-server", "llama-bench"):
        program = tmp_path / name
        said = 'for word; do [ "$word" = --version ] && echo "version: 1 (abc)" && exit 0; done; echo no luck; exit 3'
        program.write_text(f"#!/bin/sh\n{said}\n")
        program.chmod(0o755)
    before = service(fleet)
    client = Client(PORT)
    with client.asking():
        broken = deploy("--port", str(port), "--context", "1024", engine=tmp_path)
        ended = fleet.document(*broken, code=1)["hosts"][0]
        shown = fleet.run("ps", "desk", "--quick")
    assert client.failures == 0, client.outcomes
    assert "it ended with exit code 3" in ended["problem"]["message"]
    assert ended["problem"]["message"].endswith("what ran before goes on")
    assert ended["problem"]["tail"] == ["no luck"]
    after = service(fleet)
    assert (after["process"], after["spec"], after["state"]) == (before["process"], before["spec"], "ready")
    row = next(line for line in shown.stdout.splitlines() if "its successor" in line)
    assert row.split()[3] == "failed"
    assert f"{MODEL}'s successor: it ended with exit code 3 (given up at" in shown.stderr
    assert "no luck" in fleet.run("logs", MODEL).stdout
    assert fleet.document("rollout", "undo", "--yes")["hosts"][0]["ok"]
    assert "its successor" not in fleet.run("ps", "desk", "--quick").stdout
