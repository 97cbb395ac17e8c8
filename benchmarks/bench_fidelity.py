"""`fleet bench` against the same llama-bench typed by hand: python -m benchmarks.bench_fidelity [--rounds 7]

    FLEET_LLAMA_CPP_BIN=/path/to/llama.cpp/bin python -m benchmarks.bench_fidelity

A tiny model on this machine, in one run, in turns. By hand: the measuring command of `fleet bench --dry-run`, word for
word. By fleet: the whole command, whose figures are those it keeps. Each round gives one mean of each test from either
side; the difference is Welch's over these means. Overhead: wall time of `fleet bench` less that of the command by hand,
and where it goes: the command with its plan (a dry run), the job's start, the wait for an idle host, the warm-up, the
same program run by the agent less by hand, and what comes after it. Targets: no difference beyond noise, less than 2 s.
"""

import argparse
import contextlib
import json
import os
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.deploy_overhead import HOST, find_engine
from benchmarks.measure import Samples, report, run_fleet
from fleet_controller.demo.tiny_model import make_tiny_model
from fleet_controller.results.statistics import Estimate, welch

SUITE = "fidelity"
# Strangers are not judged: whether the machine is quiet is shown by the load in the report, and hits both sides alike.
SUITE_YAML = """idle: {foreign_cpu_percent: 0}
parts:
  - {prompt_tokens: 256, generation_tokens: 32, repetitions: 5}
"""
BUDGET_SECONDS = 2.0


@dataclass
class Side:
    """The means of each test by name, one a round, and wall times."""

    means: dict[str, list[float]] = field(default_factory=dict)
    wall: Samples = field(default_factory=lambda: Samples(""))
    parts: dict[str, list[float]] = field(default_factory=dict)

    def add(self, test: str, mean: float) -> None:
        self.means.setdefault(test, []).append(mean)

    def add_part(self, name: str, seconds: float) -> None:
        self.parts.setdefault(name, []).append(seconds)


@dataclass(frozen=True)
class Bench:
    folder: Path
    environment: dict[str, str]
    engine: Path
    model: Path

    def fleet(self, *arguments: str) -> Any:
        return run_fleet(self.environment, *arguments)

    def bench_arguments(self) -> list[str]:
        return [
            "bench", str(self.model), "--hosts", HOST, "--engine-path", str(self.engine), "--suite", SUITE, "--json"
        ]  # fmt: skip


@contextlib.contextmanager
def fleet_of_one() -> Iterator[Bench]:
    """This machine as a fleet, with a resident controller, in folders of its own."""
    with tempfile.TemporaryDirectory(prefix="fleet-bench-") as text:
        folder = Path(text)
        places = {"HOME": "home", "FLEET_CONFIG_DIR": "config", "FLEET_STATE_DIR": "state", "FLEET_RUNTIME_DIR": "run"}
        environment = os.environ | {name: str(folder / place) for name, place in places.items()}
        for place in places.values():
            (folder / place).mkdir(mode=0o700)
        (folder / "config" / "suites").mkdir()
        (folder / "config" / "suites" / f"{SUITE}.yaml").write_text(SUITE_YAML)
        hosts_yaml = f"hosts:\n  {HOST}:\n    transport: local\n    agent_root: {folder}/agent\n"
        (folder / "config" / "hosts.yaml").write_text(hosts_yaml)
        bench = Bench(folder, environment, find_engine(), make_tiny_model(folder / "model", "random").gguf_path)
        try:
            bench.fleet("up", HOST, "--yes", "--manager", "background")
            bench.fleet("controller", "start")
            yield bench
        finally:
            for arguments in (["agent", "remove", HOST, "--purge", "--yes"], ["controller", "stop"]):
                with contextlib.suppress(SystemExit):
                    bench.fleet(*arguments)


def by_fleet(bench: Bench, side: Side) -> None:
    started = time.perf_counter()
    bench.fleet(*bench.bench_arguments(), "--dry-run", "--again")
    planned = time.perf_counter() - started
    began = time.time()
    document = bench.fleet(*bench.bench_arguments(), "--yes", "--again")
    ended = time.time()
    side.wall.wall_seconds.append(ended - began)
    add_parts(bench, side, planned, began, ended)
    (cell,) = document["hosts"][0]["result"]["cells"]
    for row in cell["rows"]:
        side.add(row["test"], row["mean"])


def add_parts(bench: Bench, side: Side, planned: float, began: float, ended: float) -> None:
    """What the newest run says of itself, between two moments of the wall clock."""
    with contextlib.closing(sqlite3.connect(bench.folder / "state" / "fleet.db")) as connection:
        row = connection.execute(
            "SELECT started_unix_ms, finished_unix_ms, details FROM runs ORDER BY started_unix_ms DESC LIMIT 1"
        ).fetchone()
    start, finish, details = row[0] / 1000, row[1] / 1000, json.loads(row[2])
    waited, warm_up = float(details.get("waited_seconds", 0.0)), sum(details.get("warmup_seconds", ()))
    side.add_part("command, facts and plan (a dry run)", planned)
    side.add_part("job, runner and lease", start - began - planned - waited - warm_up)
    side.add_part("wait for an idle host", waited)
    side.add_part("warm-up", warm_up)
    side.add_part("the program", finish - start)
    side.add_part("rows kept, command's end", ended - finish)


def by_hand(argv: list[str], environment: dict[str, str], side: Side) -> None:
    started = time.perf_counter()
    done = subprocess.run(argv, env=environment, check=True, capture_output=True, text=True)
    side.wall.wall_seconds.append(time.perf_counter() - started)
    for row in json.loads(done.stdout):
        name = f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"
        side.add(name, float(row["avg_ts"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    fleet, hand = Side(wall=Samples("fleet bench")), Side(wall=Samples("by hand"))
    with fleet_of_one() as bench:
        by_fleet(bench, Side())  # adopts the engine and hashes the model; afterwards everything is in place
        plan = bench.fleet(*bench.bench_arguments(), "--dry-run", "--again")["plan"][0]
        measuring = next(command for command in plan["commands"] if command["purpose"] == "measure")
        extra = {entry["name"]: entry["value"] for entry in measuring.get("environment", ())}
        for _ in range(rounds):
            by_fleet(bench, fleet)
            by_hand(measuring["argv"], bench.environment | extra, hand)
    show(fleet, hand, measuring["argv"])


def show(fleet: Side, hand: Side, argv: list[str]) -> None:
    overhead = fleet.wall.wall - hand.wall.wall
    rows, tests = [], {}
    for test, means in hand.means.items():
        first, second = _estimate(means), _estimate(fleet.means[test])
        found = welch(first, second)
        percent = [value / first.mean * 100 for value in (found.difference, found.low, found.high)]
        verdict = "difference shown" if found.shown else "no difference shown"
        rows.append([test, f"{first.mean:,.0f} t/s", f"{second.mean:,.0f} t/s",
                     f"{percent[0]:+.1f} % ({percent[1]:+.1f} to {percent[2]:+.1f})", verdict])  # fmt: skip
        tests[test] = {"by_hand": means, "fleet": fleet.means[test], "difference_percent": percent, "verdict": verdict}
    rows.append(
        ["wall time of a cell", f"{hand.wall.wall:.2f} s", f"{fleet.wall.wall:.2f} s", f"{overhead:+.2f} s", ""]
    )
    parts = {name: statistics.median(values) for name, values in fleet.parts.items()}
    for name, seconds in parts.items():
        own = hand.wall.wall if name == "the program" else 0.0
        rows.append([f"- {name}", f"{own:.2f} s" if own else "-", f"{seconds:.2f} s", f"{seconds - own:+.2f} s", ""])
    report(
        "fleet bench against the same llama-bench by hand, interleaved",
        ["", "by hand", "fleet bench", "difference (95 % interval)", "verdict"],
        rows,
        {
            "tests": tests,
            "samples": [side.wall.as_json() for side in (hand, fleet)],
            "overhead_seconds": round(overhead, 3),
            "fleet_parts_seconds": {name: round(seconds, 3) for name, seconds in parts.items()},
            "budget_overhead_seconds": BUDGET_SECONDS,
            "options_by_hand": argv[1:-1],
        },
    )


def _estimate(means: list[float]) -> Estimate:
    return Estimate(statistics.fmean(means), statistics.stdev(means), len(means))


if __name__ == "__main__":
    main()
