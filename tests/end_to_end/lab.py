"""Three hosts of a lab, all real but their hardware: sshd, users, homes, agents, llama-server; a hub and an index."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from end_to_end.wheel_index import WheelIndex

from fleet_controller.backends.versions import MLX_LM_VERSION, MLX_VERSION
from fleet_controller.bringup.wheelhouse import uv_binary, uv_wheel
from support.agent_wheels import this_platform, wheels_for
from support.fleet_cli import FleetCli, eventually
from support.namespaces import NamespaceFleet, namespace_fleet
from support.stand_in_hub import StandInHub
from support.tiny_model import TinyModel, make_tiny_model

# A chat client for hosts that may lack curl: URL and body are its arguments.
ASK = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], sys.argv[2].encode(), {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=120).read().decode())
"""
HOSTS = ("gpu1", "gpu2", "mac1")
MLX_HOST = "mac1"
MLX_REQUIREMENTS = (f"mlx-lm=={MLX_LM_VERSION}", f"mlx[cpu]=={MLX_VERSION}")
GGUF_NAME = "tiny-F16.gguf"
# A held file stops after so many bytes: more than the planner reads of a header (4 MiB), less than the model has.
HELD_BYTES = 5 << 20
MODEL_LAYERS = 5


@dataclass
class Lab:
    """`fleet` is the hosts, `cli` the user's command line."""

    fleet: NamespaceFleet
    cli: FleetCli
    hub: StandInHub
    index: WheelIndex
    model: TinyModel
    engine: Path
    wheels: Path
    published: list[str] = field(default_factory=list)

    @property
    def model_bytes(self) -> int:
        return self.model.gguf_path.stat().st_size

    # -- what a user does -------------------------------------------------------------------------------------

    def publish(self, name: str) -> str:
        """A repository of the hub with the tiny GGUF; its service will be called `name`."""
        self.hub.add(f"lab/{name}", GGUF_NAME, self.model.gguf_path.read_bytes())
        self.published.append(name)
        return f"lab/{name}"

    def publish_folder(self, name: str) -> str:
        """The same weights as a repository that MLX-LM serves; the index gets what MLX-LM's installation needs."""
        for path in sorted(self.model.hf_dir.rglob("*")):
            if path.is_file():
                self.hub.add(f"lab/{name}", path.relative_to(self.model.hf_dir).as_posix(), path.read_bytes())
        self.index.stock(MLX_REQUIREMENTS, host_python(self.fleet, HOSTS[0]))
        self.published.append(name)
        return f"lab/{name}"

    def deploy_arguments(self, repository: str, hosts: str, *more: str) -> list[str]:
        return [
            "deploy", "--repo", repository, "--hosts", hosts, "--backend", "llama.cpp",
            "--engine-path", str(self.engine), "--context", "512", "--yes", *more,
        ]  # fmt: skip

    def service(self, host: str, name: str) -> dict[str, Any] | None:
        """What `fleet ps` says of a service on one host; None where it has none of this name."""
        document = self.cli.ok("ps", host, "--json").document
        services = [one for one in document["hosts"][0]["services"] if one["spec"]["name"] == name]
        return services[0] if services else None

    def ready(self, host: str, name: str) -> dict[str, Any]:
        """The service, once `fleet ps` calls it ready."""

        def look() -> dict[str, Any] | None:
            found = self.service(host, name)
            return found if found and found["state"] == "ready" else None

        return eventually(look, f"{name} on {host} is ready")

    def ask(self, host: str, endpoint: str, model: str) -> str:
        """One chat completion, asked on the host itself, where the endpoint listens."""
        body = {"model": model, "messages": [{"role": "user", "content": "Which?"}], "max_tokens": 16, "temperature": 0}
        words = ["python3", "-c", ASK, f"{endpoint}/chat/completions", json.dumps(body)]
        text: str = json.loads(self.fleet.sh(host, shlex.join(words)))["choices"][0]["message"]["content"]
        return text

    def chat(self, host: str, name: str) -> str:
        spec = self.ready(host, name)["spec"]
        return self.ask(host, f"http://{spec['bind_address']}:{spec['port']}/v1", spec["served_model_name"])

    # -- looking behind the scenes ----------------------------------------------------------------------------

    def processes(self, host: str, *words: str) -> list[int]:
        """Pids in the host's network namespace whose command line has all these words."""
        return [pid for pid in self.fleet.pids(host) if all(word in _command_line(pid) for word in words)]

    def servers(self, host: str, name: str) -> list[int]:
        """The model servers of one service, of either backend."""
        return self.processes(host, "--model", f"models--lab--{name}/")

    def agents(self, host: str) -> list[int]:
        return self.processes(host, "-m fleet_agent serve")

    def runners(self, host: str) -> list[int]:
        return self.processes(host, "-m fleet_agent run-job")

    def machine_dir(self, host: str) -> Path:
        (found,) = (self.fleet.hosts[host].home / ".local/share/fleet/machines").iterdir()
        return found

    def downloaded(self, name: str) -> list[tuple[int, int]]:
        return downloaded(self.hub, name)

    # -- mishaps ----------------------------------------------------------------------------------------------

    def hold_downloads(self, after_bytes: int = HELD_BYTES) -> None:
        """Answers stop in their middle until release_downloads(); the planner's look at the header passes.

        Those that are held already stay so.
        """
        behaviour = self.hub.behaviour
        behaviour.hold_after = after_bytes
        if behaviour.released.is_set():
            behaviour.released = threading.Event()

    def release_downloads(self) -> None:
        self.hub.behaviour.hold_after = 0
        self.hub.behaviour.released.set()

    def wait_until_held(self, name: str, answers: int = 1) -> None:
        """Until so many downloads of the model stand still, on the hub's side."""

        def held() -> bool:
            found = self.downloaded(name)
            return len(found) >= answers and found[-1][1] - found[-1][0] >= HELD_BYTES

        eventually(held, f"{name} is being downloaded, for the {answers}. time")

    def wait_for_part(self, host: str, name: str, size_bytes: int = 1) -> Path:
        """The part of a download on the host's disk, once it has so many bytes."""
        folder = self.fleet.hosts[host].home / f".cache/huggingface/hub/models--lab--{name}/blobs"

        def look() -> Path | None:
            parts = [path for path in folder.glob("*.incomplete") if path.stat().st_size >= size_bytes]
            return parts[0] if parts else None

        return eventually(look, f"{size_bytes} bytes of {name} are on {host}")

    def mount(self, host: str, *arguments: str) -> None:
        """`mount` as this one host sees it: its agent, sshd and jobs; nothing outside changes."""
        sshd = self.fleet.hosts[host].sshd
        assert sshd is not None
        subprocess.run(["nsenter", "-t", str(sshd.pid), "-m", "mount", *arguments], check=True, capture_output=True)

    def unmount(self, host: str, path: Path) -> None:
        sshd = self.fleet.hosts[host].sshd
        assert sshd is not None
        command = ["nsenter", "-t", str(sshd.pid), "-m", "umount", "--lazy", str(path)]
        subprocess.run(command, check=False, capture_output=True)

    def clear(self) -> None:
        """Takes every service off, lets nothing be held and every link be up, for the next test."""
        self.release_downloads()
        self.index.release()
        self.hub.behaviour.wrong_bytes = 0
        for name in HOSTS:
            self.fleet.link_up(name)
        self.cli.end_commands()
        if self.published:
            self.published.clear()
            self.cli.run("stop", "--all", "--remove", "--yes")


def downloaded(hub: StandInHub, name: str) -> list[tuple[int, int]]:
    """(start, end) of each answer with the model's bytes, without the planner's looks at its header."""
    with hub.changed:
        return [
            (one.start, one.start + one.sent)
            for one in hub.served
            if one.repository == f"lab/{name}" and (one.range_header is None or one.range_header.endswith("-"))
        ]


def one(pids: list[int]) -> int:
    """The only one of them: two would be work done twice."""
    assert len(pids) == 1, pids
    return pids[0]


def kill(*pids: int) -> None:
    assert pids, "there is no process to kill: the test would prove nothing"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(_lives(pid) for pid in pids), f"{pids} are gone")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def host_python(fleet: NamespaceFleet, host: str) -> tuple[int, int]:
    """The Python that the hosts' users have."""
    text = fleet.sh(host, "python3 -c 'import sys; print(*sys.version_info[:2])'")
    major, minor = text.split()
    return int(major), int(minor)


@contextlib.contextmanager
def lab_of_three(folder: Path, binaries: Path) -> Iterator[Lab]:
    """The hosts, brought up with `fleet up`, from wheels: they reach no index."""
    with contextlib.ExitStack() as stack:
        fleet = stack.enter_context(namespace_fleet(HOSTS))
        fleet.trust()
        engine = fleet.folder / "llama.cpp"
        shutil.copytree(binaries, engine)
        cli = FleetCli(folder, fleet.ssh_config)
        stack.callback(cli.close)
        hub = stack.enter_context(StandInHub(fleet.folder / "hub", controller_address(fleet)))
        index = stack.enter_context(WheelIndex(controller_address(fleet)))
        model = make_tiny_model(fleet.folder / "model", layers=MODEL_LAYERS)
        cli.write_hosts(
            {name: {} for name in HOSTS},
            environment={"HF_ENDPOINT": hub.url, "UV_DEFAULT_INDEX": index.url, "LLAMA_ARG_THREADS": "1"},
        )
        wheels = wheels_for(host_python(fleet, HOSTS[0]), with_uv=True)
        give_uv(fleet, MLX_HOST, wheels)
        lab = Lab(fleet, cli, hub, index, model, engine, wheels)
        cli.ok("up", "all", "--yes", "--wheels", str(wheels))
        yield lab


def give_uv(fleet: NamespaceFleet, host: str, wheels: Path) -> None:
    """uv where its own installer puts it: MLX-LM's environment is made with the host's uv."""
    wheel = uv_wheel(wheels, this_platform())
    assert wheel is not None
    folder = fleet.hosts[host].home / ".local" / "bin"
    fleet.sh(host, f"mkdir -p {shlex.quote(str(folder))}")
    (folder / "uv").write_bytes(uv_binary(wheel))
    (folder / "uv").chmod(0o755)


def controller_address(fleet: NamespaceFleet) -> str:
    """This machine's address on the hosts' network."""
    return f"{next(iter(fleet.hosts.values())).address.rpartition('.')[0]}.1"
