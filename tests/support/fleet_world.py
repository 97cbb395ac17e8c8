"""The real command line for hosts of transport local: what a user types, with a HOME that is not the tester's."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COMMAND_SECONDS = 120.0
# An engine's threads wait for each other without sleeping, which takes long where others compute, too.
ENGINE_THREADS = 1


class FleetWorld:
    """One user's configuration, state and runtime folder. `hosts_yaml` may be rewritten between commands."""

    def __init__(self, folder: Path, runtime: Path) -> None:
        self.folder = folder
        self.config = folder / "config"
        self.state = folder / "state"
        self.runtime = runtime
        self.home = folder / "home"
        self._agents_started = False
        for made in (self.config, self.home):
            made.mkdir(parents=True, exist_ok=True)

    @property
    def hosts_yaml(self) -> Path:
        return self.config / "hosts.yaml"

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLEET_", "HF_"))}
        return kept | {
            "HOME": str(self.home),
            "FLEET_CONFIG_DIR": str(self.config),
            "FLEET_STATE_DIR": str(self.state),
            "FLEET_RUNTIME_DIR": str(self.runtime),
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "fleet_controller.cli", *arguments]

    def run(
        self, *arguments: str, code: int | None = 0, extra: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `fleet ...` without a terminal. Fails the test where the exit code is not `code` or a traceback shows."""
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment | dict(extra or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        told = f"fleet {' '.join(arguments)} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr, told
        assert code is None or done.returncode == code, told
        return done

    def document(self, *arguments: str, code: int | None = 0) -> Any:
        """The one JSON document that `fleet ... --json` prints."""
        return json.loads(self.run(*arguments, "--json", code=code).stdout)

    def local_hosts(self, *names: str, more: str = "") -> None:
        """hosts.yaml with hosts of transport local, each with an agent of its own; `more` is appended under hosts."""
        text = "hosts:\n"
        for name in names:
            text += f"  {name}:\n    transport: local\n    agent_root: {self.folder / name}\n"
            text += f"    environment:\n      HF_HOME: {self.folder / 'huggingface'}\n"
            text += f"      LLAMA_ARG_THREADS: '{ENGINE_THREADS}'\n"
        self.hosts_yaml.write_text(text + more, encoding="utf-8")

    def up(self, *names: str) -> None:
        self._agents_started = True
        self.run("up", ",".join(names), "--yes", "--manager", "background")

    def close(self) -> None:
        """Ends whatever this world started."""
        if (self.state / "controller.json").exists():
            self.run("controller", "stop", code=None)
        if self._agents_started:
            self.run("stop", "--all", "--remove", "--yes", code=None)
            self.run("agent", "remove", "all", "--purge", "--yes", code=None)


@contextmanager
def fleet_world(folder: Path) -> Iterator[FleetWorld]:
    """A world that is cleaned up. Its runtime folder is short, since a unix socket's path must be."""
    runtime = Path(tempfile.mkdtemp(prefix="ft-", dir="/tmp"))
    world = FleetWorld(folder, runtime)
    try:
        yield world
    finally:
        world.close()
        shutil.rmtree(runtime, ignore_errors=True)
