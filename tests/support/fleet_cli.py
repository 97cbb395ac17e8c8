"""The real `fleet` command as a subprocess, with a HOME, configuration and state of its own.

cli = FleetCli(folder, ssh_config)
cli.write_hosts({"gpu1": {}})
cli.ok("up", "all", "--yes")
document = cli.ok("hosts", "--json").document
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

COMMAND = (sys.executable, "-m", "fleet_controller.cli")
COMMAND_SECONDS = 240.0
POLL_SECONDS = 0.05

Found = TypeVar("Found")


@dataclass(frozen=True)
class Finished:
    """How a command ended. `said` is both streams together, for messages that may be on either."""

    arguments: tuple[str, ...]
    code: int
    output: str
    errors: str

    @property
    def said(self) -> str:
        return f"{self.output}\n{self.errors}"

    @property
    def document(self) -> Any:
        """What `--json` printed: exactly one document."""
        return json.loads(self.output)

    def __str__(self) -> str:
        return f"fleet {' '.join(self.arguments)} -> {self.code}\n--- stdout\n{self.output}\n--- stderr\n{self.errors}"


class Running:
    """A command that was started and is not awaited yet. What it prints goes to files, so that no pipe fills up."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], environment: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.arguments = arguments
        self._output, self._errors = folder / "stdout", folder / "stderr"
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments], env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=errors
            )

    @property
    def said(self) -> str:
        """What it has printed so far, on both streams."""
        return self._output.read_text(errors="replace") + self._errors.read_text(errors="replace")

    def finish(self, seconds: float = COMMAND_SECONDS) -> Finished:
        """Waits for its end. Raises TimeoutError with what it has printed so far."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end()
            raise TimeoutError(f"still running after {seconds:g} s: {self.result(-1)}") from None
        return self.result(code)

    def result(self, code: int) -> Finished:
        output = self._output.read_text(errors="replace")
        return Finished(self.arguments, code, output, self._errors.read_text(errors="replace"))

    def end(self) -> None:
        """Kills it where it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class FleetCli:
    """`folder` holds everything of this user; it must be short, since sockets are made below it."""

    def __init__(self, folder: Path, ssh_config: Path | None = None) -> None:
        self.folder = folder
        self.hosts_file = folder / "config" / "hosts.yaml"
        places = {"HOME": "home", "FLEET_CONFIG_DIR": "config", "FLEET_STATE_DIR": "state", "FLEET_RUNTIME_DIR": "run"}
        for place in places.values():
            (folder / place).mkdir(mode=0o700, parents=True, exist_ok=True)
        dropped = ("FLEET_", "SSH_", "HF_", "UV_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        self.environment |= {name: str(folder / place) for name, place in places.items()}
        if ssh_config is not None:
            self.environment["FLEET_SSH_CONFIG"] = str(ssh_config)
        self._started: list[Running] = []

    def write_hosts(self, hosts: Mapping[str, Mapping[str, Any]], **defaults: Any) -> None:
        """hosts.yaml with these hosts; JSON is YAML, too."""
        self.hosts_file.write_text(json.dumps({"defaults": defaults, "hosts": dict(hosts)}, indent=1))

    def start(self, *arguments: str, **variables: str) -> Running:
        folder = self.folder / "commands" / str(len(self._started))
        running = Running(folder, arguments, self.environment | variables)
        self._started.append(running)
        return running

    def run(self, *arguments: str, **variables: str) -> Finished:
        """Runs a command to its end. A traceback reaches no user, whatever happened."""
        finished = self.start(*arguments, **variables).finish()
        assert "Traceback" not in finished.said, str(finished)
        assert "failed unexpectedly" not in finished.said, str(finished)
        return finished

    def ok(self, *arguments: str, **variables: str) -> Finished:
        finished = self.run(*arguments, **variables)
        assert finished.code == 0, str(finished)
        return finished

    def end_commands(self) -> None:
        """Ends every command that still runs."""
        for running in self._started:
            running.end()

    def close(self) -> None:
        """Ends every command, and the resident controller."""
        self.end_commands()
        subprocess.run([*COMMAND, "controller", "stop"], env=self.environment, capture_output=True, check=False)


def eventually(look: Callable[[], Found | None], what: str, seconds: float = 60.0) -> Found:
    """The first true value of `look`. Raises TimeoutError with `what` was waited for."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what} (last seen: {found!r})")
        time.sleep(POLL_SECONDS)
