"""One host with a real sshd and a real llama-server on its loopback."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from benchmarks.relay_network import run
from support.fleet_cli import eventually
from support.forward_world import MODEL, REMOTE_PORT, ForwardWorld
from support.namespaces import HostOptions, NamespaceFleet, namespace_fleet
from support.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def served_host(llama_cpp_bin: Path) -> Iterator[NamespaceFleet]:
    """gpu1 serves the tiny model; `closed` has an sshd that forbids forwarding; `inner` is reached through gpu1 alone,
    and has a web server that calls itself healthy."""
    options = {"closed": HostOptions(sshd_lines=("AllowTcpForwarding no",)), "inner": HostOptions(behind="gpu1")}
    with namespace_fleet(["gpu1", "closed", "inner"], options) as fleet, ExitStack() as stack:
        model = make_tiny_model(fleet.folder / "model", "chain").gguf_path
        web = fleet.folder / "web"
        web.mkdir()
        (web / "health").touch()
        _serve(stack, fleet, "gpu1", str(llama_cpp_bin / "llama-server"), "--model", str(model), "--alias", MODEL,
               "--host", "127.0.0.1", "--port", str(REMOTE_PORT), "-c", "512")  # fmt: skip
        _serve(stack, fleet, "inner", sys.executable, "-m", "http.server", str(REMOTE_PORT), "--bind", "127.0.0.1",
               "--directory", str(web))  # fmt: skip
        yield fleet


def _serve(stack: ExitStack, fleet: NamespaceFleet, host: str, *command: str) -> None:
    """Runs a server on a host until the stack is closed; returns once it listens."""
    inside = ("ip", "netns", "exec", fleet.hosts[host].namespace)
    log = stack.enter_context((fleet.folder / f"{host}.server.log").open("wb"))
    server = subprocess.Popen([*inside, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    stack.callback(server.wait)
    stack.callback(server.kill)
    eventually(lambda: f"127.0.0.1:{REMOTE_PORT}" in run(*inside, "ss", "-ltnH"), f"the server of {host} listens")


@pytest.fixture
def world(served_host: NamespaceFleet, monkeypatch: pytest.MonkeyPatch) -> Iterator[ForwardWorld]:
    """Forwards to gpu1, whose key is known; every one is ended afterwards."""
    monkeypatch.setenv("FLEET_SSH_CONFIG", str(served_host.ssh_config))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    served_host.known_hosts.unlink(missing_ok=True)
    served_host.trust()
    with tempfile.TemporaryDirectory(prefix="fleet-forwards-") as text:
        made = ForwardWorld(served_host, Path(text))
        try:
            yield made
        finally:
            served_host.link_up("gpu1")
            made.close()
            assert not _left_over(text), "a supervisor or an ssh was left running"


def _left_over(folder: str) -> list[int]:
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if folder.encode() in (entry / "cmdline").read_bytes():
                    pids.append(int(entry.name))
    return pids
