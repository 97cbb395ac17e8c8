"""A forward over a real sshd to a real llama-server: cut in every way, and back each time."""

import json
import os
import signal
import socket
import urllib.request
from pathlib import Path

import pytest

from fleet_controller.endpoints.addresses import Via, Way
from fleet_controller.endpoints.reach import ask
from fleet_controller.forwarding.causes import FORBIDDEN, HOST_KEY, LOGIN_REFUSED, PORT_TAKEN, cause_of
from fleet_controller.forwarding.manage import free_port, stop_forward, why_not_free
from fleet_controller.forwarding.processes import is_alive
from fleet_controller.forwarding.record import Forward, ForwardState, log_path, read_forward
from support.fleet_cli import eventually
from support.forward_world import MODEL, ForwardWorld
from support.tiny_model import ANSWER

pytestmark = [pytest.mark.namespaces, pytest.mark.llama_cpp]

FIRST_PORT = 18600


def chat(forward: Forward) -> str:
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "?"}], "max_tokens": 16}).encode()
    request = urllib.request.Request(f"{forward.base_url}/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"]).strip()


def brought(world: ForwardWorld) -> Forward:
    """A forward of the model that is up."""
    forward = world.start("gpu1", free_port(FIRST_PORT, frozenset()))
    up = world.up(forward)
    eventually(lambda: ask(Way(via=Via.FORWARD, base_url=up.base_url), "/health") is False, "the model answers")
    return up


def waiting(world: ForwardWorld, forward: Forward) -> Forward:
    def look() -> Forward | None:
        found = world.now(forward)
        return found if found.state is ForwardState.WAITING else None

    return eventually(look, f"{forward.name} has failed", 60.0)


def test_the_model_answers_here_until_the_forward_is_stopped(world: ForwardWorld) -> None:
    forward = brought(world)
    assert chat(forward) == ANSWER
    assert is_alive(forward.supervisor)
    assert is_alive(forward.ssh)

    assert stop_forward(world.folder, forward)
    assert not is_alive(forward.supervisor)
    assert not is_alive(forward.ssh)
    assert not world.path(forward).exists()
    assert why_not_free(forward.local_port) == ""


def test_it_comes_back_when_its_ssh_is_killed(world: ForwardWorld) -> None:
    forward = brought(world)
    assert forward.ssh is not None
    os.kill(forward.ssh.pid, signal.SIGKILL)
    again = world.up(forward, after=forward)
    assert again.local_port == forward.local_port
    assert again.supervisor == forward.supervisor
    assert again.reconnects == 1
    assert chat(again) == ANSWER


def test_it_comes_back_when_the_session_on_the_host_is_killed(world: ForwardWorld) -> None:
    forward = brought(world)
    sshd = world.fleet.hosts["gpu1"].sshd
    assert sshd is not None
    sessions = [pid for pid in world.fleet.pids("gpu1") if pid != sshd.pid and _command(pid).startswith("sshd: ")]
    assert sessions, "there is no session to kill: the test would prove nothing"
    for pid in sessions:
        os.kill(pid, signal.SIGKILL)
    assert chat(world.up(forward, after=forward)) == ANSWER


@pytest.mark.slow
def test_it_comes_back_when_the_cable_is_pulled_and_put_back(world: ForwardWorld) -> None:
    forward = brought(world)
    world.fleet.link_down("gpu1")
    cut = waiting(world, forward)
    assert cut.message
    assert not cut.carries
    world.fleet.link_up("gpu1")
    assert chat(world.up(forward, after=forward)) == ANSWER


def test_what_a_killed_supervisor_left_is_ended_by_a_stop(world: ForwardWorld) -> None:
    forward = brought(world)
    assert forward.supervisor is not None
    os.kill(forward.supervisor.pid, signal.SIGKILL)
    eventually(lambda: not is_alive(forward.supervisor), "the supervisor is dead")
    assert world.now(forward).present_state is ForwardState.ENDED
    assert is_alive(forward.ssh), "its ssh lives on, which is what this test is about"

    assert stop_forward(world.folder, world.now(forward))
    assert not is_alive(forward.ssh)
    assert why_not_free(forward.local_port) == ""


def test_it_ends_when_its_file_is_taken_away(world: ForwardWorld) -> None:
    forward = brought(world)
    world.path(forward).unlink()
    eventually(lambda: not is_alive(forward.supervisor) and not is_alive(forward.ssh), "both have ended")
    assert read_forward(world.path(forward)) is None


def test_a_hangup_of_the_terminal_does_not_end_it(world: ForwardWorld) -> None:
    forward = brought(world)
    assert forward.supervisor is not None
    assert os.getsid(forward.supervisor.pid) != os.getsid(0)
    os.kill(forward.supervisor.pid, signal.SIGHUP)
    assert chat(world.now(forward)) == ANSWER
    assert world.now(forward).carries


def test_it_goes_through_a_jump_host(world: ForwardWorld) -> None:
    forward = world.up(world.start("inner", free_port(FIRST_PORT, frozenset()), jump="gpu1"))
    assert ask(Way(via=Via.FORWARD, base_url=forward.base_url), "/health") is False


def test_an_unknown_host_key_is_never_accepted(world: ForwardWorld) -> None:
    world.fleet.known_hosts.unlink()
    # Whatever the user's file says of it.
    config = world.fleet.folder / "client" / "careless"
    config.write_text(f"StrictHostKeyChecking no\n{world.fleet.ssh_config.read_text()}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEET_SSH_CONFIG", str(config))
        failed = waiting(world, world.start("gpu1", free_port(FIRST_PORT, frozenset())))
    assert failed.cause == HOST_KEY
    assert not world.fleet.known_hosts.exists()


def test_a_host_that_wants_a_password_is_told_as_such(world: ForwardWorld) -> None:
    config = world.fleet.folder / "client" / "keyless"
    config.write_text(world.fleet.ssh_config.read_text().replace(str(world.fleet.key), "/nonexistent"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEET_SSH_CONFIG", str(config))
        failed = waiting(world, world.start("gpu1", free_port(FIRST_PORT, frozenset())))
    assert failed.cause == LOGIN_REFUSED
    assert "Permission denied" in failed.message


def test_a_host_that_forbids_forwarding_is_seen_at_the_first_request(world: ForwardWorld) -> None:
    forward = world.up(world.start("closed", free_port(FIRST_PORT, frozenset())))
    assert isinstance(ask(Way(via=Via.FORWARD, base_url=forward.base_url), "/health"), str)
    printed = log_path(world.path(forward)).read_text()
    assert cause_of(printed, 0).code == FORBIDDEN


def test_a_port_that_a_stranger_took_meanwhile_is_told_as_such(world: ForwardWorld) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        failed = waiting(world, world.start("gpu1", stranger.getsockname()[1]))
    assert failed.cause == PORT_TAKEN
    assert failed.reconnects == 0, "what answers there was never taken for the forward"
    assert chat(world.up(failed)) == ANSWER, "it takes the port once it is free"


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
