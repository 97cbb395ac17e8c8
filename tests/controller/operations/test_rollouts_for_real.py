"""Rollouts on real agents with the real llama-server: canary, waves, failures, undo, and a controller that dies."""

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.fleet_world import FleetWorld, fleet_world
from support.tiny_model import make_tiny_model

pytestmark = pytest.mark.llama_cpp

HOSTS = ("a", "b", "c", "d")
MODEL = "tiny-roll"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetWorld]:
    with fleet_world(tmp_path_factory.mktemp("fleet")) as world:
        world.local_hosts(*HOSTS, more="  away:\n    address: 127.0.0.1\n    port: 1\n")
        give_ports(world)
        world.up(*HOSTS)
        make_tiny_model(world.folder, "chain").gguf_path.rename(world.folder / f"{MODEL}.gguf")
        yield world


def give_ports(world: FleetWorld) -> None:
    """Ports of their own to hosts that are one machine."""
    text = world.hosts_yaml.read_text()
    for place, name in enumerate(HOSTS):
        ports = f"{18700 + 10 * place}-{18709 + 10 * place}"
        text = text.replace(f"  {name}:\n", f"  {name}:\n    limits: {{ports: {ports}}}\n")
    world.hosts_yaml.write_text(text)


@pytest.fixture
def deploy(fleet: FleetWorld, llama_cpp_bin: Path) -> Iterator[list[str]]:
    yield ["deploy", str(fleet.folder / f"{MODEL}.gguf"), "--quant", "F16", "--backend", "llama.cpp",
           "--engine-path", str(llama_cpp_bin)]  # fmt: skip
    fleet.run("controller", "stop", code=None)
    fleet.run("rollout", "abort", code=None)
    fleet.run("stop", "--all", "--remove", "--yes", code=None)


def on(*hosts: str) -> list[str]:
    return ["--hosts", ",".join(hosts), "--yes"]


def contexts(fleet: FleetWorld) -> dict[str, int]:
    """The context that each host serves with, by host: what tells one deploy from another here."""
    found = {}
    for entry in fleet.document("ps", ",".join(HOSTS), "--quick")["hosts"]:
        for service in entry["services"]:
            assert service["state"] == "ready", service
            found[entry["host"]] = int(service["spec"]["context_length"])
    return found


def newest(fleet: FleetWorld) -> dict[str, Any]:
    found: dict[str, Any] = fleet.document("rollout", "show")
    return found


def phases(fleet: FleetWorld) -> dict[str, str]:
    return {host["host"]: host["phase"] for host in newest(fleet)["hosts"]}


def specs(fleet: FleetWorld) -> dict[str, Any]:
    """What the hosts' own journals say that should run."""
    found = {}
    for name in HOSTS:
        for path in (fleet.folder / name).glob(f"**/services/{MODEL}.json"):
            found[name] = json.loads(path.read_text())["spec"]
    return found


def test_a_rollout_goes_through_its_waves_and_is_undone_exactly(fleet: FleetWorld, deploy: list[str]) -> None:
    fleet.document(*deploy, *on("a", "b"), "--context", "512")
    before = specs(fleet)
    shown = fleet.run(*deploy, "--hosts", "a,b,c,d", "--context", "1024", "--dry-run").stdout
    assert "order: canary a (must answer); waves of 50 %" not in shown
    assert "order: canary a (must answer); then all others at once; a failed host stops it" in shown
    ended = fleet.document(*deploy, *on(*HOSTS), "--context", "1024", "--wave", "50%")["hosts"]
    assert all(host["ok"] for host in ended)
    assert contexts(fleet) == dict.fromkeys(HOSTS, 1024)
    found = newest(fleet)
    assert (found["state"], {host["host"]: host["wave"] for host in found["hosts"]}) == (
        "done", {"a": 0, "b": 1, "c": 1, "d": 2}
    )  # fmt: skip
    undone = fleet.document("rollout", "undo", "--yes")["hosts"]
    assert all(host["ok"] for host in undone)
    assert specs(fleet) == before
    assert contexts(fleet) == {"a": 512, "b": 512}
    assert newest(fleet)["state"] == "undone"
    again = fleet.run("rollout", "undo", str(found["number"]), "--yes", code=2)
    assert "nothing to undo" in again.stderr


def test_a_failed_canary_stops_it_and_keeps_its_old_server(fleet: FleetWorld, deploy: list[str]) -> None:
    fleet.document(*deploy, *on("a", "b"), "--context", "512")
    # An engine that answers nothing: what a bad build looks like.
    broken = fleet.folder / "broken"
    broken.mkdir(exist_ok=True)
    for name in ("llama-server", "llama-bench"):
        program = broken / name
        program.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'version: 1 (abc)' && exit 0\nexit 3\n")
        program.chmod(0o755)
    bad = [str(broken) if word == str(deploy[-1]) else word for word in deploy]
    ended = {host["host"]: host for host in fleet.document(*bad, *on("a", "b"), "--context", "512", code=1)["hosts"]}
    assert "what ran before goes on" in ended["a"]["problem"]["message"]
    assert "canary a failed" in ended["b"]["problem"]["message"]
    assert contexts(fleet) == {"a": 512, "b": 512}
    found = newest(fleet)
    assert (found["state"], phases(fleet)) == ("stopped", {"a": "failed", "b": "waiting"})
    # The undo of what went back by itself changes nothing, and ends it.
    assert all(host["ok"] for host in fleet.document("rollout", "undo", "--yes")["hosts"])
    assert contexts(fleet) == {"a": 512, "b": 512}


def test_a_killed_controller_costs_nothing(fleet: FleetWorld, deploy: list[str]) -> None:
    """Killed in mid-rollout; the same command goes on, and an undo still reaches back to what ran first."""
    fleet.document(*deploy, *on("a"), "--context", "512")
    before, number = specs(fleet), newest(fleet)["number"]
    command = fleet.command(*deploy, *on(*HOSTS), "--context", "2048", "--max-unavailable", "1")
    with subprocess.Popen(command, env=fleet.environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as run:
        database = fleet.folder / "state" / "fleet.db"
        wait_for(lambda: changed_hosts(database, newer_than=number) >= 1)
        os.kill(run.pid, signal.SIGKILL)
    assert newest(fleet)["carried_out"] is False
    assert "running, cut off" in fleet.run("rollout", "list").stdout
    ended = fleet.document(*deploy, *on(*HOSTS), "--context", "2048")["hosts"]
    assert all(host["ok"] for host in ended)
    assert contexts(fleet) == dict.fromkeys(HOSTS, 2048)
    assert set(phases(fleet).values()) == {"changed"}
    assert set(phases(fleet)) == set(HOSTS)
    fleet.document("rollout", "undo", "--yes")
    assert specs(fleet) == before
    assert contexts(fleet) == {"a": 512}


def changed_hosts(database: Path, newer_than: int) -> int:
    """Of a later rollout; read as a stranger would, from the file."""
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            query = "SELECT count(*) FROM rollout_hosts WHERE phase = 'changed' AND number > ?"
            return int(connection.execute(query, (newer_than,)).fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_pause_resume_and_another_rollout_in_between(fleet: FleetWorld, deploy: list[str]) -> None:
    fleet.run("controller", "start")
    command = fleet.command(*deploy, *on(*HOSTS), "--context", "512", "--max-unavailable", "1", "--canary", "none")
    database = fleet.folder / "state" / "fleet.db"
    with subprocess.Popen(command, env=fleet.environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as run:
        wait_for(lambda: newest_state(database) == "running")
        said = fleet.document("rollout", "pause")["hosts"][0]
        run.wait(60)
    assert said["message"].startswith("paused: ")
    found = newest(fleet)
    assert found["state"] == "paused"
    waiting = [host["host"] for host in found["hosts"] if host["phase"] == "waiting"]
    assert waiting
    refused = fleet.run(*deploy, *on(waiting[0]), "--context", "1024", code=3)
    assert f"rollout {found['number']}" in refused.stderr
    resumed = fleet.document("rollout", "resume", "--yes")["hosts"]
    assert [host["host"] for host in resumed] == waiting
    assert newest(fleet)["state"] == "done"
    assert contexts(fleet) == dict.fromkeys(HOSTS, 512)


def newest_state(database: Path) -> str:
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            row = connection.execute("SELECT state FROM rollouts ORDER BY number DESC LIMIT 1").fetchone()
            return str(row[0]) if row else ""
    except sqlite3.OperationalError:
        return ""


def test_hosts_that_are_away_catch_up(fleet: FleetWorld, deploy: list[str]) -> None:
    ended = fleet.document(*deploy, *on("a", "away"), "--context", "512", "--catch-up", code=1)["hosts"]
    assert {host["host"]: host["ok"] for host in ended} == {"a": True, "away": False}
    assert phases(fleet) == {"a": "changed", "away": "away"}
    assert "away will catch up" in fleet.run("rollout", "list").stdout
    order = ("--context", "1024", "--catch-up", "--canary", "away")
    assert "canary away proves nothing: cannot connect" in fleet.run(*deploy, *on("a", "away"), *order, code=1).stderr
    assert contexts(fleet) == {"a": 512}


def test_what_somebody_deployed_since_is_left_alone(fleet: FleetWorld, deploy: list[str]) -> None:
    fleet.document(*deploy, *on("a"), "--context", "512")
    number = newest(fleet)["number"]
    fleet.document(*deploy, *on("a"), "--context", "1024")
    early = fleet.run("rollout", "undo", str(number), "--yes", code=2)
    assert "comes first" in early.stderr
    fleet.document("rollout", "undo", "--yes")
    assert contexts(fleet) == {"a": 512}


def test_what_somebody_stops_meanwhile_stays_stopped(fleet: FleetWorld, deploy: list[str], llama_cpp_bin: Path) -> None:
    """He may need the device: going back to what ran before would take it away again."""
    fleet.document(*deploy, *on("a"), "--context", "512")
    slow = fleet.folder / "slow"
    slow.mkdir(exist_ok=True)
    for name in ("llama-server", "llama-bench"):
        program = slow / name  # answers who it is, and is never ready
        program.write_text(
            f'#!/bin/sh\ncase "$*" in *--port*) exec sleep 600;; esac\nexec {llama_cpp_bin}/{name} "$@"\n'
        )
        program.chmod(0o755)
    argv = [str(slow) if word == str(deploy[-1]) else word for word in deploy]
    with subprocess.Popen(fleet.command(*argv, *on("a"), "--context", "512"), env=fleet.environment,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:  # fmt: skip
        wait_for(lambda: newest(fleet)["state"] == "running" and begun_beside(fleet, "a"))
        fleet.run("stop", MODEL, "--hosts", "a", "--yes")
        said, _ = run.communicate(timeout=60)
    assert "it is left so" in said
    (service,) = fleet.document("ps", "a")["hosts"][0]["services"]
    assert service["state"] == "stopped"


def begun_beside(fleet: FleetWorld, host: str) -> bool:
    """Whether the host's journal has a new server on its way."""
    return any(
        "successor" in json.loads(path.read_text()) for path in (fleet.folder / host).glob(f"**/services/{MODEL}.json")
    )


def test_a_lab_file_is_compared_and_brought_about(fleet: FleetWorld, deploy: list[str], llama_cpp_bin: Path) -> None:
    fleet.document(*deploy, *on("a", "b"), "--context", "512")
    lab = fleet.config / "lab.yaml"
    entry = f"  - model: {deploy[1]}\n    quantization: F16\n    backend: llama.cpp\n    engine_path: {llama_cpp_bin}\n"
    lab.write_text(f"models:\n{entry}    context: 512\n    hosts: a, c\nstop_others: true\norder: {{wave: 50%}}\n")
    rows = fleet.document("diff")
    assert {host["host"]: host["action"] for host in rows["plan"]} == {"a": "keep", "c": "start"}
    assert rows["not_in_file"] == [{"host": "b", "service": MODEL, "action": "stop"}]
    assert rows["changes"]
    assert contexts(fleet) == {"a": 512, "b": 512}
    done = fleet.document("apply", "--yes")["hosts"]
    assert [(host["host"], host["ok"]) for host in done] == [("b", True), ("c", True)]
    stopped = [service for entry in fleet.document("ps", "b")["hosts"] for service in entry["services"]]
    assert [service["state"] for service in stopped] == ["stopped"]
    again = fleet.run("diff")
    assert "nothing to change" in again.stdout
    lab.write_text("models:\n  - hosts: a\n  - model: x\n    backnd: y\n")
    wrong = fleet.run("apply", "--yes", code=2).stderr
    assert "lab.yaml:4: models[1].backnd: unknown key, did you mean 'backend'?" in wrong
    lab.write_text("models:\n  - hosts: a\n")
    assert "lab.yaml:2: models[0]: names neither a model nor a repository" in fleet.run("diff", code=2).stderr
    lab.write_text(f"models:\n{entry}    hosts: a\n{entry}    hosts: a, c\n    context: 1024\n")
    twice = fleet.run("apply", "--yes", code=2).stderr
    assert f"lab.yaml:7: models[1]: {MODEL} on a is wanted by {lab}:2: models[0] already" in twice
    assert {name: specs(fleet)[name]["context_length"] for name in ("a", "c")} == {"a": 512, "c": 512}
    lab.write_text(f"models:\n{entry}    hosts: nobody*\n")
    assert "lab.yaml:2: models[0]: no host matches 'nobody*'" in fleet.run("diff", code=2).stderr
