"""What is written down of forwards: whose processes are signalled, which ports are given, what files may say."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fleet_controller.forwarding.causes import FINAL_CODES, cause_of, remedy_of
from fleet_controller.forwarding.manage import ForwardError, free_port, new_forward, stop_forward, why_not_free
from fleet_controller.forwarding.processes import ProcessIdentity, identity_of, is_alive
from fleet_controller.forwarding.record import (
    Forward,
    ForwardState,
    list_forwards,
    read_forward,
    record_path,
    write_forward,
)
from fleet_controller.forwarding.ssh_command import forward_command, login_command
from fleet_controller.settings import Settings
from fleet_inventory.hosts import Host


@pytest.fixture
def bystander() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that has nothing to do with us."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def forward_to(host: str = "gpu1", port: int = 8100) -> Forward:
    return new_forward("tiny-chat", host, port, ("127.0.0.1", 8100), ("ssh", host))


def test_a_forward_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    forward = replace(forward_to(), supervisor=ProcessIdentity(1, "a"), state=ForwardState.UP, next_try_unix_ms=5)
    path = record_path(tmp_path, forward.model, forward.host)
    write_forward(path, forward)
    assert read_forward(path) == forward
    assert path.name == "tiny-chat@gpu1.json"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_name_that_a_host_made_up_stays_inside_the_folder(tmp_path: Path) -> None:
    assert record_path(tmp_path, "../../x", "a/b").parent == tmp_path


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"argv": 1}', "null"])
def test_a_damaged_file_is_no_forward(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "forwards"
    folder.mkdir()
    (folder / "a@b.json").write_text(text)
    write_forward(record_path(folder, "tiny-chat", "gpu1"), forward_to())
    settings = Settings(tmp_path / "hosts.yaml", tmp_path, tmp_path)
    assert [one.host for one in list_forwards(settings)] == ["gpu1"]


def test_a_process_that_took_over_the_pid_is_never_signalled(
    tmp_path: Path, bystander: "subprocess.Popen[bytes]"
) -> None:
    living = identity_of(bystander.pid)
    assert living is not None
    recycled = ProcessIdentity(living.pid, living.start_token + "0")
    stale = replace(forward_to(), state=ForwardState.UP, supervisor=recycled, ssh=recycled)
    path = record_path(tmp_path, stale.model, stale.host)
    write_forward(path, stale)

    assert stale.present_state is ForwardState.ENDED
    assert not stale.carries
    assert stop_forward(tmp_path, stale) is False
    assert bystander.poll() is None
    assert is_alive(living)
    assert not path.exists()


def test_a_start_time_of_an_earlier_boot_is_another_process() -> None:
    living = identity_of(os.getpid())
    assert living is not None
    boot, _, started = living.start_token.rpartition(":")
    assert boot
    assert not is_alive(ProcessIdentity(living.pid, f"another-boot:{started}"))


def test_a_forward_of_another_machine_is_left_alone(tmp_path: Path) -> None:
    theirs = replace(forward_to(), machine="another", machine_name="desk", supervisor=identity_of(os.getpid()))
    path = record_path(tmp_path, theirs.model, theirs.host)
    write_forward(path, theirs)
    assert theirs.present_state is ForwardState.ENDED
    with pytest.raises(ForwardError, match="is forwarded on desk"):
        stop_forward(tmp_path, theirs)
    assert path.exists()


def test_the_next_free_port_is_taken_where_the_first_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert why_not_free(port) == "is taken on this machine"
        found = free_port(port, frozenset({port + 1}))
        assert found > port + 1
    assert free_port(port, frozenset()) == port


def test_a_server_on_all_addresses_takes_the_port_too() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        assert why_not_free(taken.getsockname()[1]) == "is taken on this machine"


def test_the_command_is_that_of_the_controllers_own_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.touch()
    monkeypatch.setenv("FLEET_SSH_CONFIG", str(config))
    host = Host(name="gpu1", address="10.0.0.7", user="alice", port=2222, jump="door,bob@inner:2200")
    command = forward_command(host, 8101, "127.0.0.1", 8100)
    assert command == (
        "ssh", "-F", str(config), "-N", "-T", "-a", "-x",
        "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "UpdateHostKeys=no",
        "-o", "ExitOnForwardFailure=yes", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3",
        "-o", "ConnectTimeout=10", "-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "RemoteCommand=none",
        "-o", "LogLevel=INFO", "-L", "127.0.0.1:8101:127.0.0.1:8100",
        "-l", "alice", "-p", "2222", "-J", "door,bob@inner:2200", "10.0.0.7",
    )  # fmt: skip


def test_what_hosts_yaml_leaves_open_is_left_to_ssh_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLEET_SSH_CONFIG", raising=False)
    assert login_command(Host(name="gpu1", address="gpu1")) == ("ssh", "gpu1")
    assert login_command(Host(name="gpu1", address="gpu1", jump="")) == ("ssh", "-o", "ProxyJump=none", "gpu1")
    monkeypatch.setenv("FLEET_SSH_CONFIG", "/nonexistent/config")
    assert login_command(Host(name="gpu1", address="gpu1")) == ("ssh", "-F", "none", "gpu1")
    assert "8101:[::1]:8100" in " ".join(forward_command(Host(name="a", address="a"), 8101, "::1", 8100))


# What OpenSSH 9.2 prints.
@pytest.mark.parametrize(
    ("printed", "code", "final"),
    [
        ("bob@10.0.0.7: Permission denied (publickey,password).\r\n", "login-refused", True),
        ("Host key verification failed.\r\n", "host-key", True),
        (
            "@@@@@@@@@\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nHost key verification failed.\n",
            "host-key",
            True,
        ),
        (
            "bind [127.0.0.1]:8100: Address already in use\n"
            "channel_setup_fwd_listener_tcpip: cannot listen to port: 8100\n"
            "Could not request local forwarding.\n",
            "port-taken",
            True,
        ),
        ("channel 2: open failed: administratively prohibited: open failed\n", "forwarding-forbidden", True),
        ("ssh: connect to host 10.0.0.7 port 22: Connection refused\n", "unreachable", False),
        ("ssh: Could not resolve hostname gpu1: Name or service not known\n", "unreachable", False),
        ("Timeout, server 10.0.0.7 not responding.\n", "unreachable", False),
        ("/home/a/config: line 3: Bad configuration option: nonsense\n", "bad-ssh-config", True),
        ("Warning: Permanently added 'x' to the list of known hosts.\nsomething new\n", "ended", False),
        ("", "ended", False),
    ],
)
def test_the_cause_is_read_from_what_ssh_printed(printed: str, code: str, final: bool) -> None:
    cause = cause_of(printed, 255)
    assert (cause.code, cause.code in FINAL_CODES) == (code, final)
    assert cause.message
    assert "Warning" not in cause.message
    assert remedy_of(cause.code, "gpu1", "ssh gpu1")
