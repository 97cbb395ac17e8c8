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
        self.pid_file = self.machine_dir / "agent" / "agent.pid"
        self.program = program
        self.add("1")
        (self.machine_dir / "agent" / "current").symlink_to("versions/1")

    def add(self, name: str) -> Path:
        version = self.machine_dir / "agent" / "versions" / name
        (version / "venv" / "bin").mkdir(parents=True)
        python = version / "venv" / "bin" / "python"
        python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\n{self.program}\n')
        python.chmod(0o755)
        shutil.copy(script("agentctl"), version / "agentctl")
        quoted = str(self.machine_dir).replace("'", "'\"'\"'")
        (version / "agent.conf").write_text(f"manager=background\nmachine_dir='{quoted}'\nunit=fleet-agent-x\n")
        (version / "agent.json").write_text("{}")
        (version / "complete").touch()
        return version

    def activate(self, name: str, keep: str) -> dict[str, list[str]]:
        variables = {"FLEET_MACHINE_DIR": str(self.machine_dir), "FLEET_VERSION": name}
        variables |= {"FLEET_CONFIGURATION": "new", "FLEET_KEEP_VERSIONS": keep}
        done = subprocess.run(
            ["/bin/sh", "-s"], input=exports(variables) + script("activate").read_text(),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return parse_answers(done.stdout)

    def versions(self) -> list[str]:
        return sorted(path.name for path in (self.machine_dir / "agent" / "versions").iterdir())

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


def command_line(answers: dict[str, list[str]]) -> str:
    return Path(f"/proc/{answers['agent_pid'][0]}/cmdline").read_bytes().replace(b"\0", b" ").decode()


RUNNING = "while :; do sleep 0.2; done"


def test_of_several_that_start_it_at_once_one_does(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    installed = Installed(tmp_path, f"echo $$ >>'{starts}'; {RUNNING}")
    command = ["/bin/sh", str(installed.machine_dir / "agent" / "current" / "agentctl"), "start"]
    try:
        several = [subprocess.Popen(command) for _ in range(6)]
        assert [one.wait(30) for one in several] == [0] * 6
        (pid,) = installed.ctl("status")["agent_pid"]
        while not starts.exists():
            assert is_running(int(pid))
        assert starts.read_text().split() == [pid]
        assert not list(installed.pid_file.parent.glob("*.lock"))
    finally:
        installed.ctl("stop")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_who_died_while_starting_it_holds_nobody_up_for_ever(installed: Installed) -> None:
    program = installed.machine_dir / "agent" / "current" / "agentctl"
    program.write_text(program.read_text().replace("START_TENTHS=50", "START_TENTHS=2"))
    installed.pid_file.with_name("agent.pid.lock").mkdir()
    installed.ctl("start")
    assert installed.ctl("status")["agent"] == ["running"]
    assert not installed.pid_file.with_name("agent.pid.lock").exists()


def test_an_agent_that_is_started_in_the_middle_of_an_upgrade_is_the_new_one(tmp_path: Path) -> None:
    """A rollout that finds its agent gone starts it, and does not know that somebody upgrades it just then."""
    installed = Installed(tmp_path, RUNNING)
    former, new = installed.machine_dir / "agent" / "versions" / "1", installed.add("2")
    (former / "agentctl").rename(former / "own")
    again = '[ "$1" != stop ] || /bin/sh "$(dirname "$0")/../../current/agentctl" start'
    (former / "agentctl").write_text(f'/bin/sh "$(dirname "$0")/own" "$1"\n{again}\n')
    installed.ctl("start")
    first = installed.ctl("status")
    try:
        upgraded = installed.activate("2", keep="1")
        assert upgraded["agent_pid"] != first["agent_pid"]
        assert str(new) in command_line(upgraded)
        assert not is_running(int(first["agent_pid"][0]))
    finally:
        installed.ctl("stop")


def test_a_version_that_a_runner_still_uses_outlives_two_upgrades(tmp_path: Path) -> None:
    installed = Installed(tmp_path, RUNNING)
    python = installed.machine_dir / "agent" / "versions" / "1" / "venv" / "bin" / "python"
    runner = subprocess.Popen([str(python), "-m", "fleet_agent", "run-job"])
    try:
        for name, before in (("2", "1"), ("3", "2")):
            installed.add(name)
            installed.activate(name, keep=before)
        assert installed.versions() == ["1", "2", "3"]
        runner.kill()
        runner.wait()
        installed.add("4")
        installed.activate("4", keep="3")
        assert installed.versions() == ["3", "4"]
    finally:
        runner.kill()
        runner.wait()
        installed.ctl("stop")


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
