"""The scripts that run on hosts: lint, and what agentctl signals."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_controller.transport.deploy_files import deploy_file
from fleet_controller.transport.discovery import parse_answers, parse_platform
from fleet_controller.transport.link import exports, unpack_command

SCRIPTS = ("probe", "agentctl", "install", "activate")


def script(name: str) -> Path:
    return deploy_file(f"bootstrap/{name}.sh")


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name: str) -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, str(script(name))], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_shell_of_this_machine_can_read_it(name: str) -> None:
    for shell in filter(None, map(shutil.which, ("sh", "dash", "bash", "ksh", "zsh"))):
        done = subprocess.run([shell, "-n", str(script(name))], capture_output=True, text=True, check=False)
        assert (shell, done.returncode, done.stderr) == (shell, 0, "")


def test_the_probe_describes_this_machine(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "FLEET_PYTHON": sys.executable}
    done = subprocess.run(
        ["/bin/sh", str(script("probe"))], env=environment, capture_output=True, text=True, check=True
    )
    platform = parse_platform(done.stdout)
    assert platform.os == os.uname().sysname.lower()
    assert platform.architecture == os.uname().machine
    assert platform.root == f"{tmp_path}/.local/share/fleet"
    assert platform.pythons[0].version == sys.version_info[:3]
    assert platform.disk_free_bytes is not None
    assert platform.disk_free_bytes > 0
    assert platform.agent is None
    assert list(tmp_path.iterdir()) == []  # it only looks


class Installed:
    """A machine folder whose agent is a stand-in program."""

    def __init__(self, folder: Path, program: str) -> None:
        self.machine_dir = folder / "machine with 'quotes'"
        version = self.machine_dir / "agent" / "versions" / "1"
        (version / "venv" / "bin").mkdir(parents=True)
        python = version / "venv" / "bin" / "python"
        python.write_text(f"#!/bin/sh\n{program}\n")
        python.chmod(0o755)
        shutil.copy(script("agentctl"), version / "agentctl")
        quoted = str(self.machine_dir).replace("'", "'\"'\"'")
        (version / "agent.conf").write_text(f"manager=background\nmachine_dir='{quoted}'\nunit=fleet-agent-x\n")
        (self.machine_dir / "agent" / "current").symlink_to("versions/1")
        self.pid_file = self.machine_dir / "agent" / "agent.pid"

    def ctl(self, action: str) -> dict[str, list[str]]:
        command = ["/bin/sh", str(self.machine_dir / "agent" / "current" / "agentctl"), action]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return parse_answers(done.stdout)


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installed]:
    stand_in = Installed(tmp_path, "exec sleep 600")
    yield stand_in
    stand_in.ctl("stop")


def test_start_is_idempotent_and_stop_ends_it(installed: Installed) -> None:
    assert installed.ctl("status")["agent"] == ["stopped"]
    installed.ctl("start")
    first = installed.ctl("status")
    installed.ctl("start")
    assert first["agent"] == ["running"]
    assert installed.ctl("status")["agent_pid"] == first["agent_pid"]
    installed.ctl("stop")
    assert installed.ctl("status")["agent"] == ["stopped"]
    installed.ctl("stop")


def test_an_agent_has_a_session_of_its_own(installed: Installed) -> None:
    installed.ctl("start")
    pid = int(installed.ctl("status")["agent_pid"][0])
    assert os.getsid(pid) == pid


def test_a_foreign_process_with_a_recycled_pid_is_never_signalled(installed: Installed) -> None:
    foreign = subprocess.Popen(["sleep", "600"])
    try:
        installed.pid_file.write_text(f"{foreign.pid}\n1\n")
        assert installed.ctl("status")["agent"] == ["stopped"]
        installed.ctl("stop")
        assert foreign.poll() is None
    finally:
        foreign.kill()
        foreign.wait()


@pytest.mark.parametrize("content", ["", "12\n", "garbage\n\n"])
def test_a_broken_pid_file_counts_as_stopped(installed: Installed, content: str) -> None:
    installed.pid_file.write_text(content)
    assert installed.ctl("status")["agent"] == ["stopped"]


def test_an_agent_that_does_not_end_on_request_is_ended(tmp_path: Path) -> None:
    stubborn = Installed(tmp_path, "trap '' TERM; while :; do sleep 1; done")
    fast = stubborn.machine_dir / "agent" / "current" / "agentctl"
    fast.write_text(fast.read_text().replace("STOP_SECONDS=15", "STOP_SECONDS=1"))
    stubborn.ctl("start")
    stubborn.ctl("stop")
    assert stubborn.ctl("status")["agent"] == ["stopped"]


def test_values_reach_a_script_unchanged() -> None:
    value = "a 'b' \"c\" $HOME `id` \\ %s"
    text = exports({"VALUE": value}) + 'printf "%s" "$VALUE"\n'
    done = subprocess.run(["/bin/sh", "-s"], input=text, capture_output=True, text=True, check=True)
    assert done.stdout == value


@pytest.mark.parametrize("shell", ["sh", "bash", "fish", "tcsh"])
def test_the_unpack_command_means_the_same_to_every_login_shell(shell: str, tmp_path: Path) -> None:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    target = tmp_path / "it's a $HOME"
    (tmp_path / "file").write_text("x")
    archive = subprocess.run(["tar", "-cf", "-", "-C", str(tmp_path), "file"], capture_output=True, check=True).stdout
    subprocess.run([path, "-c", unpack_command(str(target))], input=archive, check=True)
    assert (target / "file").read_text() == "x"
    assert target.stat().st_mode & 0o777 == 0o700


def test_folders_that_shells_read_differently_are_refused() -> None:
    for folder in ("/a\\b", "/a\nb", "/a!b"):
        with pytest.raises(ValueError, match="cannot use the folder"):
            unpack_command(folder)
