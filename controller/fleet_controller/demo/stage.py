"""The demo's own world: temporary folders, two hosts on this machine, and every trace of it removed at the end."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PORTS_PER_HOST = 10
FIRST_PORT, LAST_PORT = 18100, 28100
CLEAN_UP_SECONDS = 120

HOSTS_YAML = """\
# Written by `fleet demo`. Both hosts are this machine: each has an agent, engines and a journal of its own.
defaults:
  transport: local
  environment:
    HF_HOME: {folder}/huggingface
    HF_HUB_OFFLINE: "1"
hosts:
"""
HOST_ENTRY = """\
  {name}:
    agent_root: {folder}/{name}
    limits:
      ports: {first}-{last}
"""


@dataclass(frozen=True)
class Stage:
    """`folder` holds everything. `variables` lead the `fleet` command to it."""

    folder: Path
    hosts: tuple[str, ...]

    @property
    def variables(self) -> dict[str, str]:
        return {
            "FLEET_CONFIG_DIR": str(self.folder / "config"),
            "FLEET_STATE_DIR": str(self.folder / "state"),
            "FLEET_RUNTIME_DIR": str(self.folder / "run"),
        }

    @property
    def models(self) -> Path:
        return self.folder / "models"

    def fleet(self, *arguments: str, timeout_seconds: float | None = None, quiet: bool = False) -> int:
        """Run the real command line on this stage; returns its exit code."""
        sys.stdout.flush()
        hidden = subprocess.DEVNULL if quiet else None
        environment = os.environ | self.variables
        environment.pop("FLEET_HOSTS", None)
        command = [sys.executable, "-m", "fleet_controller.cli", *arguments]
        return subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=hidden,
            stderr=hidden,
            timeout=timeout_seconds,
            check=False,
        ).returncode


def set_stage(hosts: tuple[str, ...]) -> Stage:
    """Make the folders and hosts.yaml. Under /tmp, since a unix socket's path must stay short."""
    folder = Path(tempfile.mkdtemp(prefix="fleet-demo-", dir="/tmp"))
    stage = Stage(folder, hosts)
    for name in ("config", "state", "run", "models", "huggingface"):
        (folder / name).mkdir(mode=0o700)
    text = HOSTS_YAML.format(folder=folder)
    next_port = FIRST_PORT
    for name in hosts:
        first = _free_ports(next_port)
        next_port = first + PORTS_PER_HOST
        text += HOST_ENTRY.format(name=name, folder=folder, first=first, last=next_port - 1)
    (folder / "config" / "hosts.yaml").write_text(text, encoding="utf-8")
    # A play on a machine in use, not a measurement: nobody's work there makes it void.
    (folder / "config" / "suites").mkdir()
    (folder / "config" / "suites" / "quick.yaml").write_text("idle: {foreign_cpu_percent: 0}\nparts:\n  - {}\n")
    return stage


def strike(stage: Stage) -> None:
    """Stop the models, remove the agents, delete the folders. A second Ctrl-C does not stop the cleaning."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for arguments in (("stop", "--all", "--remove", "--yes"), ("agent", "remove", "all", "--purge", "--yes")):
            with contextlib.suppress(subprocess.TimeoutExpired):
                stage.fleet(*arguments, timeout_seconds=CLEAN_UP_SECONDS, quiet=True)
        shutil.rmtree(stage.folder, ignore_errors=True)
    finally:
        signal.signal(signal.SIGINT, previous)


def _free_ports(first: int) -> int:
    """The first of `PORTS_PER_HOST` ports in a row on which nothing listens now."""
    for start in range(first, LAST_PORT, PORTS_PER_HOST):
        if all(_is_free(port) for port in range(start, start + PORTS_PER_HOST)):
            return start
    return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
