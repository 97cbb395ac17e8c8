"""What `fleet forward` and `fleet endpoints` say to mistakes, and what they do where no host needs to be asked."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fleet_controller.forwarding.manage import new_forward
from fleet_controller.forwarding.processes import ProcessIdentity, identity_of
from fleet_controller.forwarding.record import ForwardState, record_path, write_forward
from support.fleet_world import FleetWorld, fleet_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[FleetWorld]:
    with fleet_world(tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    "arguments",
    [
        ("forward",),
        ("forward", "--stop"),
        ("forward", "m", "--stop", "--all"),
        ("forward", "m", "--all"),
        ("forward", "--list", "--stop", "--all"),
        ("forward", "m", "--stop", "--port", "8080"),
        ("forward", "m", "--port", "0"),
        ("endpoints", "--format", "toml"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(world: FleetWorld, arguments: tuple[str, ...]) -> None:
    done = world.run(*arguments, code=2)
    assert done.stdout == ""
    assert "error" in done.stderr.lower()


def test_a_broken_hosts_file_hinders_no_listing_and_no_stop(world: FleetWorld) -> None:
    world.hosts_yaml.write_text("hosts: [\n")
    assert world.document("forward", "--list") == {"forwards": []}
    assert world.document("forward", "--list", "--hosts", "gpu1", code=2)["error"]["exit_code"] == 2
    _write_stale(world, identity_of(1))
    assert world.document("forward", "--stop", "tiny-chat", "--hosts", "gpu1")["stopped"][0]["host"] == "gpu1"
    assert world.run("forward", "tiny-chat", code=2).stderr.count(str(world.hosts_yaml)) >= 1


def test_a_stale_file_with_a_recycled_pid_is_shown_as_ended_and_forgotten_without_a_signal(world: FleetWorld) -> None:
    world.local_hosts()
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        living = identity_of(bystander.pid)
        assert living is not None
        _write_stale(world, ProcessIdentity(living.pid, f"{living.start_token}9"))
        [shown] = world.document("forward", "--list")["forwards"]
        assert (shown["state"], shown["pid"]) == ("ended", None)
        assert "its process is gone" in shown["note"]

        world.run("forward", "--stop", "--all")
        assert bystander.poll() is None
        assert world.document("forward", "--list") == {"forwards": []}
    finally:
        bystander.kill()
        bystander.wait()


def test_help_stays_cheap() -> None:
    """The commands are named without loading what they do."""
    script = "import sys, fleet_controller.cli.app; print([m for m in sys.modules if 'forwarding' in m or 'grpc' in m])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []


def _write_stale(world: FleetWorld, supervisor: ProcessIdentity | None) -> None:
    """A forward that a supervisor of an earlier time left behind."""
    folder = world.state / "forwards"
    folder.mkdir(parents=True, exist_ok=True)
    if supervisor is not None and supervisor.pid == 1:
        supervisor = ProcessIdentity(1, "another-boot:1")
    stale = replace(
        new_forward("tiny-chat", "gpu1", 18100, ("127.0.0.1", 8100), ("ssh", "gpu1")),
        state=ForwardState.UP,
        supervisor=supervisor,
    )
    write_forward(record_path(folder, stale.model, stale.host), stale)
