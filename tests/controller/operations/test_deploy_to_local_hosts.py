"""`fleet deploy` for real: two local hosts with real agents, the real llama-server, a controller that gets killed."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet_controller.service.resident import start_token
from support.fleet_world import FleetWorld, fleet_world
from support.tiny_model import ANSWER, make_tiny_model

pytestmark = pytest.mark.llama_cpp

MODEL = "tiny-chat"
DOWN = "  down:\n    address: 127.0.0.1\n    port: 1\n"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetWorld]:
    """Hosts a and b with agents; `down` answers nobody."""
    with fleet_world(tmp_path_factory.mktemp("fleet")) as world:
        world.local_hosts("a", "b", more=DOWN)
        world.up("a", "b")
        make_tiny_model(world.folder, "chain").gguf_path.rename(world.folder / f"{MODEL}.gguf")
        yield world


@pytest.fixture
def deploy(fleet: FleetWorld, llama_cpp_bin: Path) -> Iterator[list[str]]:
    """The arguments of a deploy to add hosts to; what runs afterwards is stopped and forgotten."""
    path = str(fleet.folder / f"{MODEL}.gguf")
    yield ["deploy", path, "--quant", "F16", "--backend", "llama.cpp", "--engine-path", str(llama_cpp_bin),
           "--context", "512"]  # fmt: skip
    fleet.run("controller", "stop", code=None)
    fleet.run("stop", "--all", "--remove", "--yes", code=None)


def services(fleet: FleetWorld, host: str) -> list[dict[str, Any]]:
    found = fleet.document("ps", host)["hosts"]
    return [service for entry in found for service in entry["services"]]


def server_pids(fleet: FleetWorld) -> list[int]:
    """Every llama-server process that serves this fleet's model."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                argv = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if argv[0].endswith(b"llama-server") and str(fleet.folder / f"{MODEL}.gguf").encode() in argv:
                pids.append(int(entry.name))
    return pids


def chat(endpoint: str, model: str) -> str:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "?"}], "max_tokens": 16}).encode()
    request = urllib.request.Request(f"{endpoint}/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


def test_what_the_dry_run_shows_is_what_runs_and_the_second_time_changes_nothing(
    fleet: FleetWorld, deploy: list[str]
) -> None:
    where = ["--hosts", "a", "--port", "18410"]
    [planned] = fleet.document(*deploy, *where, "--dry-run")["plan"]
    assert planned["action"] == "start"
    assert server_pids(fleet) == []
    [serve] = [command for command in planned["commands"] if command["purpose"] == "serve"]

    [done] = fleet.document(*deploy, *where, "--yes")["hosts"]
    assert done["changed"]
    assert done["result"]["answer"].strip() == ANSWER
    assert chat(done["result"]["endpoint"], done["result"]["model"]).strip() == ANSWER
    [pid] = server_pids(fleet)
    argv = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode().split("\0")
    assert argv == serve["argv"]

    with contextlib.closing(sqlite3.connect(fleet.state / "fleet.db")) as database:
        rows = database.execute(
            "SELECT backend, context_tokens, predicted_bytes, observed_bytes FROM memory_observations"
        )
        [(backend, context, predicted, observed)] = rows.fetchall()
    assert (backend, context) == ("llama.cpp", 512)
    assert predicted == sum(line["bytes"] for line in planned["fit_lines"] if line["what"] != "reserve")
    assert (
        0.5 < observed / predicted < 2
    )  # what it printed and what it holds, as long as its buffers are hardly touched

    again = fleet.run(*deploy, *where, "--yes")
    assert "nothing to change" in again.stdout
    assert server_pids(fleet) == [pid]

    assert f"{MODEL}  ready" in fleet.run("ps", "a").stdout
    printed = fleet.run("logs", MODEL, "--hosts", "a", "--tail", "5").stdout
    assert printed.startswith("a: ")
    (log,) = fleet.document("logs", MODEL, "--hosts", "a", "--tail", "5")["hosts"]
    assert (log["host"], len(log["lines"]), log["problem"]) == ("a", 5, None)
    assert "--follow never ends" in fleet.run("logs", MODEL, "--follow", "--json", code=2).stderr


def test_a_host_that_is_down_is_reported_and_the_other_is_served(fleet: FleetWorld, deploy: list[str]) -> None:
    done = fleet.run(*deploy, "--hosts", "a,down", "--port", "18411", "--yes", code=1)
    assert "error: down: cannot connect to 127.0.0.1" in done.stderr
    assert ANSWER in done.stdout
    assert fleet.run("ps", "a,down", code=1).stdout.count(MODEL) == 1


def test_two_hosts_at_once(fleet: FleetWorld, deploy: list[str]) -> None:
    text = fleet.hosts_yaml.read_text()
    try:
        with_ports = text
        for name, ports in (("a", "18420-18429"), ("b", "18430-18439")):
            root = f"    agent_root: {fleet.folder / name}\n"
            with_ports = with_ports.replace(root, f"{root}    limits:\n      ports: {ports}\n")
        fleet.hosts_yaml.write_text(with_ports)
        hosts = fleet.document(*deploy, "--hosts", "a,b", "--yes")["hosts"]
        endpoints = {entry["host"]: entry["result"]["endpoint"] for entry in hosts}
        assert endpoints == {"a": "http://127.0.0.1:18420/v1", "b": "http://127.0.0.1:18430/v1"}
        assert len(server_pids(fleet)) == 2
        stopped = fleet.document("stop", MODEL, "--hosts", "a,b", "--yes")
        assert [entry["changed"] for entry in stopped["hosts"]] == [True, True]
        assert server_pids(fleet) == []
        again = fleet.document("stop", MODEL, "--hosts", "a,b", "--yes")
        assert [entry["changed"] for entry in again["hosts"]] == [False, False]
    finally:
        fleet.hosts_yaml.write_text(text)


def test_without_a_terminal_nothing_is_changed_unless_yes_is_given(fleet: FleetWorld, deploy: list[str]) -> None:
    refused = fleet.run(*deploy, "--hosts", "a", "--port", "18412", code=2)
    assert "--yes" in refused.stderr
    assert "start" in refused.stdout  # the plan came first
    assert server_pids(fleet) == []


def test_what_does_not_fit_is_refused_before_anything_runs(fleet: FleetWorld, deploy: list[str]) -> None:
    text = fleet.hosts_yaml.read_text()
    try:
        root = f"    agent_root: {fleet.folder / 'a'}\n"
        fleet.hosts_yaml.write_text(text.replace(root, f"{root}    limits:\n      memory_reserve: 100 TB\n"))
        refused = fleet.run(*deploy, "--hosts", "a", "--yes", code=3)
    finally:
        fleet.hosts_yaml.write_text(text)
    assert "does not fit" in refused.stderr
    assert "reserve" in refused.stdout  # the arithmetic
    assert server_pids(fleet) == []


def test_a_port_that_something_else_has_is_a_clear_error(fleet: FleetWorld, deploy: list[str]) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 18413))
        taken.listen()
        done = fleet.run(*deploy, "--hosts", "a", "--port", "18413", "--yes", code=None)
    assert done.returncode in (1, 3)
    assert "18413" in done.stderr


@pytest.mark.parametrize("stage", ["install:", "serve:"])
def test_the_controller_killed_in_the_middle_loses_nothing_and_doubles_nothing(
    fleet: FleetWorld, deploy: list[str], stage: str
) -> None:
    pid = fleet.document("controller", "start")["pid"]
    command = [*deploy, "--hosts", "b", "--port", "18414", "--yes"]
    if stage == "install:":
        command += ["--backend-version", "b1"]  # an install of its own, so that there is one to interrupt
    running = subprocess.Popen(
        fleet.command(*command),
        env=fleet.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    told = ""
    for line in running.stderr:
        told += line
        if stage in line:
            break
    else:
        pytest.fail(told)
    os.kill(pid, signal.SIGKILL)
    rest = running.stderr.read()
    assert running.wait(timeout=60) == 1, told + rest
    assert "repeat the same command" in rest
    assert "Traceback" not in rest
    assert start_token(pid) is None

    fleet.run(*command)
    assert len(server_pids(fleet)) == 1
    [service] = services(fleet, "b")
    assert service["state"] == "ready"
    assert service["restarts"] == 0


def test_a_resident_controller_keeps_connections_warm(fleet: FleetWorld, deploy: list[str]) -> None:
    fleet.run("controller", "start")
    fleet.run("hosts", "a,b")
    assert fleet.document("controller", "status")["warm_connections"] == 2
    embedded = fleet.document("hosts", "a", "--cached")["hosts"]
    assert embedded[0]["facts"]["hostname"]


def test_ctrl_c_detaches_and_says_how_to_come_back(fleet: FleetWorld, deploy: list[str]) -> None:
    fleet.run("controller", "start")
    command = [*deploy, "--hosts", "a", "--port", "18415", "--yes"]
    running = subprocess.Popen(
        fleet.command(*command),
        env=fleet.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    for line in running.stderr:
        if "a: " in line:
            break
    running.send_signal(signal.SIGINT)
    rest = running.stderr.read()
    assert running.wait(timeout=60) == 130
    assert "detached" in rest
    assert "fleet deploy" in rest
    assert "Traceback" not in rest
    fleet.run(*command)
    assert len(server_pids(fleet)) == 1
