"""A rollout of 16 hosts with one canary failure, one host dying in wave 2, the controller killed in wave 3, resumed,
undone: the database, the hosts' journals and the running processes agree at every step.

Sixteen real agents on one machine, each with the real llama-server and one thread.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.fleet_cli import eventually
from support.fleet_world import FleetWorld, fleet_world
from support.tiny_model import make_tiny_model

pytestmark = [pytest.mark.llama_cpp, pytest.mark.slow]

HOSTS = tuple(f"h{number:02}" for number in range(1, 17))
BEFORE = HOSTS[:8]  # serve the model with another context before the rollout; the others have nothing
CANARY = "h01"
DYING = "h09"  # the last of wave 2: h06 to h09
MODEL = "tiny-sixteen"
OLD_CONTEXT, NEW_CONTEXT = 512, 1024
SECONDS = 180.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetWorld]:
    with fleet_world(tmp_path_factory.mktemp("fleet")) as world:
        write_hosts(world)
        world.up(*HOSTS)
        make_tiny_model(world.folder, "chain").gguf_path.rename(world.folder / f"{MODEL}.gguf")
        yield world
        write_hosts(world)


def write_hosts(world: FleetWorld, dead: str = "") -> None:
    """All hosts with ports of their own; a dead one has an address where nobody answers."""
    more = f"  {dead}:\n    address: 127.0.0.1\n    port: 1\n" if dead else ""
    world.local_hosts(*(name for name in HOSTS if name != dead), more=more)
    text = world.hosts_yaml.read_text()
    for place, name in enumerate(HOSTS):
        first = 19000 + 10 * place
        text = text.replace(f"  {name}:\n", f"  {name}:\n    limits: {{ports: {first}-{first + 9}}}\n")
    world.hosts_yaml.write_text(text)


@dataclass(frozen=True)
class Journal:
    """What one host's journal says of the model."""

    path: Path
    spec: dict[str, Any]
    desired: str
    pid: int | None
    handing_over: bool

    @property
    def context(self) -> int:
        return int(self.spec["context_length"])


def journals(fleet: FleetWorld) -> dict[str, Journal]:
    found = {}
    for name in HOSTS:
        for path in (fleet.folder / name).glob(f"machines/*/services/{MODEL}.json"):
            record = json.loads(path.read_text())
            server = record.get("successor", {}).get("server")
            on_its_way = server is not None and server["condition"]["state"] != "failed"
            pid = record["process"]["pid"] if record["process"] else None
            found[name] = Journal(path, record["spec"], record["desired"], pid, on_its_way or "leaving" in record)
    return found


def servers(fleet: FleetWorld) -> dict[str, set[int]]:
    """The model servers of each host, from the environments of all processes: also those that no journal knows."""
    found: dict[str, set[int]] = {name: set() for name in HOSTS}
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            words = environ.read_bytes().split(b"\0")
        except OSError:
            continue
        marker = next((word.decode() for word in words if word.startswith(b"FLEET_SERVICE=")), "")
        folder = marker.removeprefix("FLEET_SERVICE=")
        if folder.startswith(f"{fleet.folder}/") and folder.endswith(f"/services/{MODEL}"):
            found[Path(folder).relative_to(fleet.folder).parts[0]].add(int(environ.parent.name))
    return found


def rows(fleet: FleetWorld) -> tuple[int, str, dict[str, str]]:
    """Number, state and the hosts' phases of the newest rollout; read as a stranger would, from the file."""
    with sqlite3.connect(f"file:{fleet.state / 'fleet.db'}?mode=ro", uri=True) as connection:
        number, state = connection.execute("SELECT number, state FROM rollouts ORDER BY number DESC LIMIT 1").fetchone()
        hosts = connection.execute("SELECT host, phase FROM rollout_hosts WHERE number = ?", (number,)).fetchall()
    return int(number), str(state), dict(hosts)


def disagreement(fleet: FleetWorld, dead: str = "") -> str:
    """What of database, journals and processes does not fit together; "" where all does.

    A host that is changed has the new context in its journal; one that was cut off in its change has one of the two;
    every other one has what it had before. What the journal wants runs, in one process, with just that context.
    """
    _, _, phases = rows(fleet)
    written, running = journals(fleet), servers(fleet)
    for name in HOSTS:
        phase, journal = phases.get(name, "waiting"), written.get(name)
        old = OLD_CONTEXT if name in BEFORE else None
        new_ones = {"changed": (NEW_CONTEXT,), "changing": (NEW_CONTEXT, old)}
        allowed = new_ones.get(phase, (old,))
        if journal is not None and journal.handing_over:
            return f"{name} is {phase} and between two servers"
        context = journal.context if journal is not None and journal.desired == "running" else None
        if context not in allowed:
            return f"{name} is {phase} and its journal says context {context}"
        wanted = {journal.pid} if journal is not None and context is not None and name != dead else set()
        if running[name] != wanted:
            return f"{name} is {phase}, its journal says {wanted}, and {running[name]} run"
        for pid in running[name]:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if not any(f"{option}\0{context}" in "\0".join(command) for option in ("-c", "--ctx-size")):
                return f"{name}: pid {pid} runs without context {context}: {command}"
    return ""


def agree(fleet: FleetWorld, dead: str = "") -> None:
    """At once where nothing is under way; what a dead controller left under way comes to its end by itself."""
    try:
        eventually(lambda: disagreement(fleet, dead) == "", "they agree", SECONDS)
    except TimeoutError:
        raise AssertionError(disagreement(fleet, dead)) from None


def kill_host(fleet: FleetWorld, name: str) -> None:
    """Everything of it dies at once, and nobody answers at its address any more."""
    write_hosts(fleet, dead=name)
    folder = f"{fleet.folder}/{name}"
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            words = environ.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        own = any(word.startswith((f"FLEET_SERVICE={folder}/", f"FLEET_AGENT_ROOT={folder}")) for word in words)
        if own and int(environ.parent.name) != os.getpid():
            os.kill(int(environ.parent.name), signal.SIGKILL)


def broken_engine(folder: Path) -> Path:
    """One that answers nothing: what a bad build looks like."""
    folder.mkdir()
    for name in ("llama-server", "llama-bench"):
        program = folder / name
        program.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'version: 1 (abc)' && exit 0\nexit 3\n")
        program.chmod(0o755)
    return folder


def test_sixteen_hosts_whatever_dies(fleet: FleetWorld, llama_cpp_bin: Path) -> None:
    def deploy(engine: Path, context: int, *more: str) -> list[str]:
        return ["deploy", str(fleet.folder / f"{MODEL}.gguf"), "--quant", "F16", "--backend", "llama.cpp",
                "--engine-path", str(engine), "--context", str(context), "--yes", *more]  # fmt: skip

    everywhere = ("--hosts", ",".join(HOSTS), "--wave", "25%")
    fleet.document(*deploy(llama_cpp_bin, OLD_CONTEXT, "--hosts", ",".join(BEFORE), "--canary", "none"))
    before = {name: journal.spec for name, journal in journals(fleet).items()}
    assert {name: spec["context_length"] for name, spec in before.items()} == dict.fromkeys(BEFORE, OLD_CONTEXT)

    # The canary fails: it has its old server still, and nobody else was touched.
    ended = fleet.document(*deploy(broken_engine(fleet.folder / "broken"), NEW_CONTEXT, *everywhere), code=1)["hosts"]
    assert {host["host"] for host in ended if not host["ok"]} == set(HOSTS)
    number, state, phases = rows(fleet)
    assert (state, phases) == ("stopped", {name: "failed" if name == CANARY else "waiting" for name in HOSTS})
    agree(fleet)
    assert {name: journal.spec for name, journal in journals(fleet).items()} == before

    # A host dies in wave 2, and counts as the one failure that is allowed; the controller dies in wave 3.
    order = ("--max-unavailable", "2", "--max-failures", "1")
    command = fleet.command(*deploy(llama_cpp_bin, NEW_CONTEXT, *everywhere, *order))
    environment = fleet.environment | {"FLEET_HOST_PATIENCE_SECONDS": "5"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:

        def is_changing(*hosts: str) -> bool:
            current, _, now = rows(fleet)
            return current > number and any(now[name] in ("changing", "changed") for name in hosts)

        eventually(lambda: is_changing("h06", "h07", "h08"), "wave 2 begins", SECONDS)
        kill_host(fleet, DYING)
        eventually(lambda: is_changing("h10", "h11", "h12", "h13"), "wave 3 begins", SECONDS)
        run.kill()
    _, state, phases = rows(fleet)
    assert (state, phases[DYING]) == ("running", "away")
    assert [phases[name] for name in HOSTS[:8]] == ["changed"] * 8
    assert {phases[name] for name in HOSTS[13:]} == {"waiting"}
    agree(fleet, dead=DYING)
    assert "running, cut off" in fleet.run("rollout", "list").stdout

    # The host is back, and the rollout is resumed.
    write_hosts(fleet)
    fleet.run("rollout", "resume", "--yes")
    _, state, phases = rows(fleet)
    assert (state, phases) == ("done", dict.fromkeys(HOSTS, "changed"))
    agree(fleet)

    fleet.run("rollout", "undo", "--yes")
    _, state, phases = rows(fleet)
    assert (state, phases) == ("undone", dict.fromkeys(HOSTS, "undone"))
    agree(fleet)
    assert {name: journal.spec for name, journal in journals(fleet).items()} == before
    shutil.rmtree(fleet.folder / "broken")
