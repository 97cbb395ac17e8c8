"""`fleet backends` for real: a host with a real agent, the real llama-server under two versions, commands that die."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.fleet_cli import eventually
from support.fleet_world import FleetWorld, fleet_world
from support.tiny_model import make_tiny_model

pytestmark = pytest.mark.llama_cpp

MODEL = "tiny-chat"
PORT = "18797"
# A build of the test's own: what it does as a server stands in a file beside it.
STAND_IN = """#!/bin/sh
case "$1" in --version|--help) exec "{real}" "$@";; esac
while [ "$(cat "{mode}")" = wait ]; do sleep 0.05; done
[ "$(cat "{mode}")" = fail ] && {{ echo "this build is broken" >&2; exit 1; }}
exec "{real}" "$@"
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetWorld]:
    with fleet_world(tmp_path_factory.mktemp("backends")) as made:
        made.local_hosts("a")
        made.up("a")
        make_tiny_model(made.folder, "chain").gguf_path.rename(made.folder / f"{MODEL}.gguf")
        yield made


class Lab:
    """The host, its first version (`b1`, the real one), and a second (`b2`) whose server does what `mode` says."""

    def __init__(self, world: FleetWorld, real: Path) -> None:
        self.world, self.real = world, real
        self.new = world.folder / "new-build"
        self.new.mkdir(exist_ok=True)
        self.mode("go")
        server = self.new / "llama-server"
        server.write_text(STAND_IN.format(real=real / "llama-server", mode=self.new / "mode"))
        server.chmod(0o755)
        if not (self.new / "llama-bench").exists():
            (self.new / "llama-bench").symlink_to(real / "llama-bench")

    def mode(self, text: str) -> None:
        draft = self.new / "mode.new"
        draft.write_text(text)
        draft.replace(self.new / "mode")

    def deploy(self) -> None:
        self.world.run(
            "deploy", str(self.world.folder / f"{MODEL}.gguf"), "--quant", "F16", "--backend", "llama.cpp",
            "--backend-version", "b1", "--engine-path", str(self.real), "--context", "512", "--port", PORT,
            "--hosts", "a", "--yes",
        )  # fmt: skip

    @property
    def upgrade(self) -> list[str]:
        return ["backends", "upgrade", "llama.cpp", "--hosts", "a", "--version", "b2", "--engine-path", str(self.new),
                "--yes"]  # fmt: skip

    def start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.world.command(*self.upgrade), env=self.world.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def engines(self) -> dict[str, dict[str, Any]]:
        """By version, those that fleet installed."""
        [host] = self.world.document("backends", "list", "a")["hosts"]
        return {one["facts"]["version"]: one for one in host["engines"] if one["facts"]["managed"]}

    def service(self) -> dict[str, Any]:
        [host] = self.world.document("ps", "a")["hosts"]
        found: dict[str, Any] = next(one for one in host["services"] if one["spec"]["name"] == MODEL)
        return found

    def next_version(self) -> str:
        """Of the server that is started beside the model's own; empty where none is."""
        return str(self.service().get("successor", {}).get("spec", {}).get("backend_version", ""))


@pytest.fixture
def lab(world: FleetWorld, llama_cpp_bin: Path) -> Iterator[Lab]:
    made = Lab(world, llama_cpp_bin)
    made.deploy()
    yield made
    made.mode("go")
    world.run("stop", "--all", "--remove", "--yes", code=None)
    for version in made.engines():
        world.run("backends", "remove", "llama.cpp", "--version", version, "--hosts", "a", "--yes")


def read_until(running: "subprocess.Popen[str]", text: str) -> str:
    assert running.stderr is not None
    told = ""
    for line in running.stderr:
        told += line
        if text in line:
            return told
    pytest.fail(f"it never said {text!r}: {told}")


def test_an_upgrade_moves_the_model_and_keeps_the_old_version_until_gc(lab: Lab) -> None:
    before = lab.service()["spec"]
    [planned] = lab.world.document(*lab.upgrade, "--dry-run")["plan"]
    assert [move["service"] for move in planned["moves"]] == [MODEL]
    assert lab.service()["spec"] == before

    [done] = lab.world.document(*lab.upgrade)["hosts"]
    assert done["result"]["moved"] == [MODEL]
    after = lab.service()
    assert after["state"] == "ready"
    assert after["spec"]["tool"]["install_key"] == planned["install_key"]
    assert after["spec"]["arguments"] == before["arguments"]
    engines = lab.engines()
    assert engines["b1"]["services"] == []
    assert engines["b2"]["services"] == [MODEL]
    assert all(one["facts"]["served_unix_ms"] for one in engines.values())
    assert all(one["facts"]["created_unix_ms"] and one["size_bytes"] for one in engines.values())
    assert "nothing to change" in lab.world.run(*lab.upgrade).stdout

    refused = lab.world.run("backends", "remove", "llama.cpp", "--version", "b2", "--hosts", "a", "--yes", code=3)
    assert f"is used by {MODEL}" in refused.stderr
    gc = ["backends", "gc", "--hosts", "a"]
    assert engines["b1"]["facts"]["install_key"] in lab.world.run(*gc, "--dry-run").stdout
    assert set(lab.engines()) == {"b1", "b2"}
    assert "freed" in lab.world.run(*gc, "--yes").stdout
    assert set(lab.engines()) == {"b2"}
    assert lab.service()["process"] == after["process"]


def test_a_new_version_that_does_not_serve_brings_the_old_one_back(lab: Lab) -> None:
    before = lab.service()["spec"]
    lab.mode("fail")
    done = lab.world.run(*lab.upgrade, code=1)
    assert f"{MODEL} does not run on llama.cpp b2" in done.stderr
    assert "it runs on b1 again" in done.stderr
    after = lab.service()
    assert (after["state"], after["spec"]) == ("ready", before)
    engines = lab.engines()
    assert engines["b2"]["facts"]["served_unix_ms"] is None
    lab.world.run("backends", "gc", "--hosts", "a", "--yes")
    assert set(lab.engines()) == {"b1", "b2"}  # the new one may be kept for another try, the old one must be


@pytest.mark.parametrize(("mode", "version", "code"), [("go", "b2", 0), ("fail", "b1", 1)])
def test_a_command_killed_in_the_middle_of_a_move_is_repeated(lab: Lab, mode: str, version: str, code: int) -> None:
    """The second command knows where the model came from, and takes it there where the new version does not serve."""
    lab.mode("wait")
    running = lab.start()
    read_until(running, f"starting {MODEL}")
    eventually(lambda: lab.next_version() == "b2", "the model is on its way to b2")
    running.kill()
    running.wait()
    assert running.stderr is not None
    running.stderr.close()
    lab.mode(mode)
    lab.world.run(*lab.upgrade, code=code)
    after = lab.service()
    assert (after["state"], after["spec"]["backend_version"]) == ("ready", version)
    assert set(lab.engines()) == {"b1", "b2"}


def test_an_agent_killed_in_the_middle_of_a_move_loses_nothing(lab: Lab) -> None:
    lab.mode("wait")
    running = lab.start()
    read_until(running, f"starting {MODEL}")
    eventually(lambda: lab.next_version() == "b2", "the model is on its way to b2")
    [agent] = [
        int(path.read_text()) for path in lab.world.runtime.rglob("*.lock") if path.read_text().strip().isdigit()
    ]
    os.kill(agent, signal.SIGKILL)
    read_until(running, "reconnecting")
    lab.mode("go")
    assert running.stderr is not None
    rest = running.stderr.read()
    assert running.wait(timeout=120) == 0, rest
    after = lab.service()
    assert (after["state"], after["spec"]["backend_version"]) == ("ready", "b2")


def test_a_repeated_command_joins_the_upgrade_that_a_resident_controller_goes_on_with(lab: Lab) -> None:
    lab.mode("wait")
    lab.world.run("controller", "start")
    try:
        first = lab.start()
        read_until(first, f"starting {MODEL}")
        eventually(lambda: lab.next_version() == "b2", "the model is on its way to b2")
        first.kill()
        first.wait()
        second = lab.start()
        read_until(second, f"starting {MODEL}")
        lab.mode("go")
        assert second.wait(timeout=120) == 0
        after = lab.service()
        assert (after["state"], after["spec"]["backend_version"], after["restarts"]) == ("ready", "b2", 0)
        for one in (first, second):
            assert one.stderr is not None
            one.stderr.close()
    finally:
        lab.world.run("controller", "stop", code=None)


def test_a_model_that_somebody_stops_in_the_middle_of_a_move_stays_stopped(lab: Lab) -> None:
    lab.mode("wait")
    running = lab.start()
    read_until(running, f"starting {MODEL}")
    eventually(lambda: lab.next_version() == "b2", "the model is on its way to b2")
    lab.world.run("stop", MODEL, "--hosts", "a", "--yes")
    assert running.stderr is not None
    rest = running.stderr.read()
    assert running.wait(timeout=120) == 1
    assert "was stopped by someone else meanwhile" in rest
    assert lab.service()["state"] == "stopped"


def test_leftovers_are_told_and_cleared(lab: Lab) -> None:
    [engines_dir] = lab.world.folder.glob("a/machines/*/engines")
    waste = engines_dir / "llama.cpp-b9-00000000.build"
    waste.mkdir()
    (waste / "objects").write_bytes(b"x" * 300_000)
    listed = lab.world.run("backends", "list", "a")
    assert "1 build folder" in listed.stderr
    [done] = lab.world.document("backends", "gc", "--hosts", "a", "--yes")["hosts"]
    assert done["result"]["leftovers"] == [waste.name]
    assert done["result"]["freed_bytes"] >= 300_000
    assert not waste.exists()
    assert lab.service()["state"] == "ready"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["remove", "llama.cpp", "--version", "b77"], "installed on none of these hosts"),
        (["remove", "llama.cpp"], "say which install goes"),
        (["install", "lama.cpp"], "no backend 'lama.cpp'"),
        (["install", "mlx-lm", "--offline", "wheels"], "takes an absolute folder"),
        (["install", "mlx-lm", "--version", "x"], "is not a version of mlx-lm"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_reason(world: FleetWorld, arguments: list[str], said: str) -> None:
    done = world.run("backends", *arguments, "--hosts", "a", "--yes", code=None)
    assert done.returncode in (1, 2)
    assert said in done.stderr


@pytest.mark.mlx
def test_a_python_engine_is_installed_measured_and_removed(world: FleetWorld) -> None:
    install = ["backends", "install", "mlx-lm", "--hosts", "a"]
    [planned] = world.document(*install, "--dry-run")["plan"]
    assert [command["argv"][1] for command in planned["commands"]] == ["venv", "pip"]
    [done] = world.document(*install, "--yes")["hosts"]
    assert done["result"]["installed"]
    assert "nothing to change" in world.run(*install, "--yes").stdout
    [host] = world.document("backends", "list", "a", "--backend", "mlx-lm")["hosts"]
    [engine] = host["engines"]
    assert engine["pinned"]
    assert engine["facts"]["served_unix_ms"] is None
    assert engine["size_bytes"] > 100_000_000
    assert engine["size_bytes"] >= engine["shared_bytes"]
    [removed] = world.document("backends", "remove", "--key", engine["facts"]["install_key"], "--hosts", "a", "--yes")[
        "hosts"
    ]
    freed = removed["result"]["freed_bytes"]
    assert abs(freed - (engine["size_bytes"] - engine["shared_bytes"])) < 5_000_000
    assert not Path(engine["facts"]["path"]).exists()
