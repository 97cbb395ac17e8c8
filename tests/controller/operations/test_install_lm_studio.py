"""LM Studio's install script, through fleet: asked about by address and hash, run once, never by `--yes` alone.

The script is a stand-in: it puts the stand-in for lms where the real one would lie. No real one has been run.
"""

import hashlib
import os
import pty
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fleet_cli import eventually
from support.fleet_world import FleetWorld, fleet_world
from support.stand_in_lms import install
from support.stand_in_scripts import ScriptServer, script_server, script_that_brings

pytestmark = pytest.mark.slow

INSTALL = ("backends", "install", "lm-studio", "--hosts", "a")


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[ScriptServer]:
    lms = install(tmp_path / "lms", Path("/nowhere/llama-server"), {})
    with script_server(script_that_brings(lms)) as server:
        yield server


@pytest.fixture
def world(tmp_path: Path) -> Iterator[FleetWorld]:
    with fleet_world(tmp_path / "world") as made:
        made.local_hosts("a")
        made.up("a")
        yield made


def runs(world: FleetWorld) -> int:
    record = world.home / "runs"
    return len(record.read_text().splitlines()) if record.exists() else 0


def at_a_terminal(world: FleetWorld, scripts: ScriptServer, answer: str, *words: str) -> tuple[int, str]:
    """(exit code, everything printed) of a command whose questions are answered so."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer.encode() + b"\n")
        done = subprocess.run(
            world.command(*words), env=world.environment | scripts.variables, stdin=theirs, stderr=theirs,
            stdout=subprocess.PIPE, timeout=120, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout.decode() + os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_nothing_runs_without_being_asked_for(world: FleetWorld, scripts: ScriptServer) -> None:
    refused = world.run(*INSTALL, "--yes", code=3, extra=scripts.variables)
    assert "--install-lm-studio" in refused.stderr and "curl -fsSL https://lmstudio.ai/install.sh" in refused.stderr
    wrong = world.run("backends", "install", "mlx-lm", "-H", "a", "--install-lm-studio", "--yes", code=2)
    assert "lm-studio" in wrong.stderr
    assert scripts.requests == 0 and runs(world) == 0


def test_the_plan_shows_what_would_run_and_dry_run_stops_there(world: FleetWorld, scripts: ScriptServer) -> None:
    shown = world.run(*INSTALL, "--install-lm-studio", "--dry-run", extra=scripts.variables).stdout
    sha256 = hashlib.sha256(scripts.body).hexdigest()
    assert scripts.url in shown and sha256 in shown
    assert f"/bin/bash {next((world.folder / 'a' / 'machines').iterdir())}/installers/{sha256}.sh" in shown
    assert runs(world) == 0


def test_it_runs_once_where_it_was_agreed_to(world: FleetWorld, scripts: ScriptServer) -> None:
    done = world.run(*INSTALL, "--install-lm-studio", "--yes", extra=scripts.variables)
    assert "installed lm-studio" in done.stdout and runs(world) == 1
    [script] = (world.folder / "a").glob("machines/*/installers/*.sh")
    assert script.read_bytes() == scripts.body

    again = world.run(*INSTALL, "--install-lm-studio", "--yes", extra=scripts.variables)
    assert "nothing to change" in again.stdout and runs(world) == 1
    [engine] = world.document("backends", "list", "a", "--backend", "lm-studio")["hosts"][0]["engines"]
    assert engine["facts"]["path"] == str(world.home / ".lmstudio/bin/lms")


def test_a_script_that_changed_after_the_question_is_not_run(world: FleetWorld, scripts: ScriptServer) -> None:
    scripts.bodies = [scripts.body, b"#!/bin/bash\ntouch ~/evil\n"]
    failed = world.run(*INSTALL, "--install-lm-studio", "--yes", code=1, extra=scripts.variables)
    assert "another script now" in failed.stderr and "nothing was run" in failed.stderr
    assert not (world.home / "evil").exists() and runs(world) == 0


def test_a_script_that_fails_is_told_with_its_words(world: FleetWorld, scripts: ScriptServer) -> None:
    scripts.bodies = [b"#!/bin/bash\necho no such platform >&2\nexit 4\n"]
    failed = world.run(*INSTALL, "--install-lm-studio", "--yes", code=1, extra=scripts.variables)
    assert "exit code 4" in failed.stderr and "no such platform" in failed.stderr
    scripts.bodies = [b"#!/bin/bash\nexit 0\n"]
    failed = world.run(*INSTALL, "--install-lm-studio", "--yes", code=1, extra=scripts.variables)
    assert "in none of the folders" in failed.stderr


def test_a_page_is_no_script(world: FleetWorld, scripts: ScriptServer) -> None:
    scripts.bodies = [b"<html>sign in</html>"]
    failed = world.run(*INSTALL, "--install-lm-studio", "--yes", code=1, extra=scripts.variables)
    assert "holds no script" in failed.stderr


def test_a_terminal_is_asked_even_with_yes(world: FleetWorld, scripts: ScriptServer) -> None:
    sha256 = hashlib.sha256(scripts.body).hexdigest()
    code, shown = at_a_terminal(world, scripts, "n", *INSTALL, "--yes")
    assert code == 0 and sha256 in shown and "Install on a? [y/N]" in shown and "nothing was changed" in shown
    assert runs(world) == 0
    code, shown = at_a_terminal(world, scripts, "y", *INSTALL, "--yes")
    assert code == 0 and "installed lm-studio" in shown
    eventually(lambda: runs(world) == 1, "the script has run")
