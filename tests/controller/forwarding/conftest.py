"""One host with a real sshd and a real llama-server on its loopback."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support.fleet_cli import eventually
from support.forward_world import MODEL, REMOTE_PORT, ForwardWorld
from support.namespaces import HostOptions, NamespaceFleet, namespace_fleet, run
from support.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def served_host(llama_cpp_bin: Path) -> Iterator[NamespaceFleet]:
    """gpu1 serves the tiny model; `closed` has an sshd that forbids forwarding."""
    with namespace_fleet(["gpu1", "closed"], {"closed": HostOptions(sshd_lines=("AllowTcpForwarding no",))}) as fleet:
        model = make_tiny_model(fleet.folder / "model", "chain").gguf_path
        log = (fleet.folder / "llama-server.log").open("wb")
        server = subprocess.Popen(
            ["ip", "netns", "exec", fleet.hosts["gpu1"].namespace, str(llama_cpp_bin / "llama-server"), "--model",
             str(model), "--host", "127.0.0.1", "--port", str(REMOTE_PORT), "--alias", MODEL, "-c", "512"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        log.close()
        listening = f"127.0.0.1:{REMOTE_PORT}"
        eventually(
            lambda: listening in run("ip", "netns", "exec", fleet.hosts["gpu1"].namespace, "ss", "-ltnH"),
            "llama-server listens",
        )
        yield fleet
        with suppress(ProcessLookupError):
            server.kill()
        server.wait()


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
