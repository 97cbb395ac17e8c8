"""Commands whose own machine is the trouble, and what a script gets that asked for JSON."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fleet_world import FleetWorld, fleet_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[FleetWorld]:
    with fleet_world(tmp_path) as made:
        yield made


def test_json_is_one_document_when_the_command_fails_too(world: FleetWorld) -> None:
    for command in (("hosts",), ("ps",), ("deploy", "/x.gguf", "--hosts", "a"), ("stop",), ("agent", "status")):
        error = world.document(*command, code=2)["error"]
        assert error["exit_code"] == 2
        assert error["message"]
        assert error["remedy"] or "fleet init" in error["message"]


def test_json_of_a_change_without_a_terminal_says_that_yes_is_needed(world: FleetWorld) -> None:
    world.local_hosts("a")
    assert "--yes" in world.document("up", "a", code=2)["error"]["remedy"]


@pytest.mark.parametrize("command", ["hosts", "ps"])
def test_a_state_folder_that_cannot_be_made_is_one_error_and_no_hosts_fault(world: FleetWorld, command: str) -> None:
    world.local_hosts("a", "b")
    blocked = world.folder / "file"
    blocked.write_text("")
    done = world.run(command, code=1, extra={"FLEET_STATE_DIR": str(blocked / "state")})
    assert done.stdout == ""
    assert "set FLEET_STATE_DIR" in done.stderr
    assert done.stderr.count("error:") == 1


def test_ps_claims_nothing_about_hosts_that_did_not_answer(world: FleetWorld) -> None:
    world.local_hosts("a")
    done = world.run("ps", code=1)
    assert "fleet up a" in done.stderr
    assert "no model is deployed" not in done.stderr


def test_a_closed_stdout_is_no_defect(world: FleetWorld) -> None:
    world.local_hosts("a")
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", *world.command("hosts", "--cached")]
    done = subprocess.run(shell, env=world.environment, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "unexpectedly" not in done.stderr


@pytest.mark.parametrize("variable", ["FLEET_STATE_DIR", "FLEET_RUNTIME_DIR"])
def test_a_folder_for_everybody_is_not_closed_to_the_others(world: FleetWorld, variable: str) -> None:
    world.local_hosts("a")
    shared = world.folder / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    done = world.run("ps", code=1, extra={variable: str(shared)})
    assert "name a folder below it" in done.stderr
    assert shared.stat().st_mode & 0o7777 == 0o1777
