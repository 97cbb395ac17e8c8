"""What `fleet deploy` adds to the same command typed by hand: python -m benchmarks.deploy_overhead [--rounds 7]

    FLEET_LLAMA_CPP_BIN=/path/to/llama.cpp/bin python -m benchmarks.deploy_overhead

A tiny model and the real llama-server on this machine, warm: a resident controller, a running agent, engine and model
file in place. By hand: the serve command of `fleet deploy --dry-run`, word for word, then /health every 10 ms, then one
chat completion. By fleet: the command line from its start to its end, which comes after the same chat completion (its
smoke test). Target: less than 1 s more.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Samples, report, run_fleet
from fleet_controller.demo.tiny_model import make_tiny_model

HOST = "here"
CONTEXT_LENGTH = 1024
START_LIMIT_SECONDS = 120


@dataclass(frozen=True)
class Bench:
    """A fleet of this one machine, in folders of its own."""

    folder: Path
    environment: dict[str, str]
    engine: Path
    model: Path

    def fleet(self, *arguments: str) -> Any:
        """Runs a command; its JSON document, or None where it printed none. Ends the benchmark where it fails."""
        return run_fleet(self.environment, *arguments)

    def deploy_arguments(self) -> list[str]:
        return [
            "deploy", str(self.model), "--hosts", HOST, "--backend", "llama.cpp", "--engine-path", str(self.engine),
            "--context", str(CONTEXT_LENGTH), "--json",
        ]  # fmt: skip


def find_engine() -> Path:
    """The folder of the llama.cpp binaries: FLEET_LLAMA_CPP_BIN, or where llama-server is on the PATH."""
    named = os.environ.get("FLEET_LLAMA_CPP_BIN")
    found = shutil.which("llama-server", path=named) or shutil.which("llama-server")
    if not found:
        raise SystemExit("no llama-server: set FLEET_LLAMA_CPP_BIN to the folder that has it")
    return Path(found).resolve().parent


@contextlib.contextmanager
def fleet_of_one() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="fleet-bench-") as text:
        folder = Path(text)
        places = {"HOME": "home", "FLEET_CONFIG_DIR": "config", "FLEET_STATE_DIR": "state", "FLEET_RUNTIME_DIR": "run"}
        environment = os.environ | {name: str(folder / place) for name, place in places.items()}
        for place in places.values():
            (folder / place).mkdir(mode=0o700)
        hosts_yaml = f"hosts:\n  {HOST}:\n    transport: local\n    agent_root: {folder}/agent\n"
        (folder / "config" / "hosts.yaml").write_text(hosts_yaml)
        model = make_tiny_model(folder / "model").gguf_path
        bench = Bench(folder, environment, find_engine(), model)
        with contextlib.ExitStack() as stack:
            stack.callback(clean_up, bench)
            bench.fleet("up", HOST, "--yes")
            bench.fleet("controller", "start")
            yield bench


def clean_up(bench: Bench) -> None:
    for arguments in (["stop", "--all", "--yes"], ["agent", "remove", HOST, "--yes"], ["controller", "stop"]):
        with contextlib.suppress(SystemExit):
            bench.fleet(*arguments)


def by_fleet(bench: Bench, samples: Samples) -> dict[str, Any]:
    started = time.perf_counter()
    document = bench.fleet(*bench.deploy_arguments(), "--yes")
    samples.wall_seconds.append(time.perf_counter() - started)
    result: dict[str, Any] = document["hosts"][0]["result"]
    assert result["answer"]
    bench.fleet("stop", document["plan"][0]["service"]["name"], "--hosts", HOST, "--remove", "--yes")
    return result


def by_hand(samples: Samples, argv: Sequence[str], environment: dict[str, str], port: int) -> None:
    with socket.socket() as probe:  # nobody else answers on this port
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    started = time.perf_counter()
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_ready(process, f"http://127.0.0.1:{port}/health", started + START_LIMIT_SECONDS)
        ask(f"http://127.0.0.1:{port}/v1/chat/completions")
        samples.wall_seconds.append(time.perf_counter() - started)
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_until_ready(process: subprocess.Popen[bytes], url: str, deadline: float) -> None:
    while time.perf_counter() < deadline:
        with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(url, timeout=5):
            return
        if process.poll() is not None:
            raise SystemExit(f"the model server ended with {process.returncode}")
        time.sleep(0.01)
    raise SystemExit("the model server did not become ready")


def ask(url: str) -> None:
    body = {"messages": [{"role": "user", "content": "Which answer is right?"}], "max_tokens": 32}
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        assert json.load(reply)["choices"][0]["message"]["content"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    fleet, hand, inside = Samples("fleet deploy"), Samples("by hand"), Samples("inside the controller")
    with fleet_of_one() as bench:
        by_fleet(bench, Samples("warm-up"))  # adopts the engine; afterwards everything is in place
        plan = bench.fleet(*bench.deploy_arguments(), "--dry-run")["plan"][0]
        serve = next(command for command in plan["commands"] if command["purpose"] == "serve")
        extra = {entry["name"]: entry["value"] for entry in serve.get("environment", ())}
        for _ in range(rounds):
            inside.wall_seconds.append(float(by_fleet(bench, fleet)["seconds"]))
            by_hand(hand, serve["argv"], bench.environment | extra, int(plan["port"]))
    show(fleet, hand, inside, serve["argv"])


def show(fleet: Samples, hand: Samples, inside: Samples, argv: list[str]) -> None:
    rows = [[samples.name, f"{samples.wall:.3f} s"] for samples in (hand, fleet, inside)]
    rows += [["added by fleet", f"{fleet.wall - hand.wall:.3f} s"], ["ratio", f"{fleet.wall / hand.wall:.2f}"]]
    report(
        "fleet deploy against the same command by hand, until the first answer",
        ["median wall time", ""],
        rows,
        {
            "samples": [samples.as_json() for samples in (hand, fleet, inside)],
            "added_seconds": round(fleet.wall - hand.wall, 3),
            "ratio": round(fleet.wall / hand.wall, 3),
            "budget_added_seconds": 1.0,
            "options_by_hand": [word for word in argv if word.startswith("-")],
        },
    )


if __name__ == "__main__":
    main()
