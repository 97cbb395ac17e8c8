"""`fleet bench` against the same llama-bench typed by hand: python -m benchmarks.bench_fidelity [--rounds 8]

    FLEET_LLAMA_CPP_BIN=/path/to/llama.cpp/bin python -m benchmarks.bench_fidelity
    python -m benchmarks.bench_fidelity --llama-bench /opt/llama.cpp/bin/llama-bench --model /data/some.gguf --host gpu1

Without --host a fleet of this machine is made in folders of its own, and removed. With it, `fleet up` has been there:
a host of hosts.yaml with `transport: local`, so that both sides run on this machine; FLEET_CONFIG_DIR and
FLEET_STATE_DIR count as ever, the controller is started, and the suite `fidelity` lies beside hosts.yaml meanwhile. The
folder of llama-bench holds llama-server, too. No network is needed.

By hand: the measuring command of `fleet bench --dry-run`, word for word. By fleet: the whole command, whose figures are
those it keeps. Repetitions are as many as make a run by hand last --seconds. Rounds are pairs, fleet first in every
other one. Each gives one mean of each test from either side; the difference is the mean of the pairs' differences with
its 95 % interval (Student's t), so that what changes between rounds is in neither.

Overhead: wall time of `fleet bench` less that of the command by hand, and where it goes: the command with its plan (a
dry run), the job's start, the wait for an idle host, the warm-up, the same program run by the agent less by hand, and
what comes after it. Beside it what fleet itself uses of the CPU: the runner while the program runs, as it tells itself,
and the agent during the whole command. Targets: no difference beyond noise, less than 2 s.
"""

import argparse
import contextlib
import json
import math
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
from fleet_controller.results.statistics import t_quantile

SUITE = "fidelity"
# Strangers are not judged: whether the machine is quiet is shown by the load in the report, and hits both sides alike.
SUITE_YAML = """idle: {foreign_cpu_percent: 0}
parts:
  - {prompt_tokens: 256, generation_tokens: 64, repetitions: 5}
"""
BUDGET_SECONDS = 2.0
CONFIDENCE = 0.95


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
    """A fleet with one host that is this machine."""

    environment: dict[str, str]
    host: str
    engine: Path
    model: Path
    database: Path
    repetitions: int = 5

    def fleet(self, *arguments: str) -> Any:
        return run_fleet(self.environment, *arguments)

    def bench_arguments(self) -> list[str]:
        return [
            "bench", str(self.model), "--hosts", self.host, "--engine-path", str(self.engine), "--suite", SUITE,
            "--repetitions", str(self.repetitions), "--json",
        ]  # fmt: skip

    def commands(self) -> dict[str, tuple[list[str], dict[str, str]]]:
        """Purpose -> the command that the plan shows, and its variables."""
        plan = self.fleet(*self.bench_arguments(), "--dry-run", "--again")["plan"][0]
        return {
            command["purpose"]: (
                command["argv"], {entry["name"]: entry["value"] for entry in command.get("environment", ())}
            )
            for command in plan["commands"]
        }  # fmt: skip


@contextlib.contextmanager
def fleet_of_one(engine: Path, model: Path | None) -> Iterator[Bench]:
    """This machine as a fleet, with a resident controller, in folders of its own."""
    with tempfile.TemporaryDirectory(prefix="fleet-bench-") as text:
        folder = Path(text)
        places = {"HOME": "home", "FLEET_CONFIG_DIR": "config", "FLEET_STATE_DIR": "state", "FLEET_RUNTIME_DIR": "run"}
        environment = os.environ | {name: str(folder / place) for name, place in places.items()}
        for place in places.values():
            (folder / place).mkdir(mode=0o700)
        hosts_yaml = f"hosts:\n  {HOST}:\n    transport: local\n    agent_root: {folder}/agent\n"
        (folder / "config" / "hosts.yaml").write_text(hosts_yaml)
        model = model or make_tiny_model(folder / "model", "random", hidden_size=1024, layers=6).gguf_path
        bench = Bench(environment, HOST, engine, model, folder / "state" / "fleet.db")
        with suite_in(folder / "config"):
            try:
                bench.fleet("up", HOST, "--yes", "--manager", "background")
                bench.fleet("controller", "start")
                yield bench
            finally:
                for arguments in (["agent", "remove", HOST, "--purge", "--yes"], ["controller", "stop"]):
                    with contextlib.suppress(SystemExit):
                        bench.fleet(*arguments)


@contextlib.contextmanager
def fleet_that_is_there(host: str, engine: Path, model: Path) -> Iterator[Bench]:
    """A host that `fleet up` has set up, of transport local, in the user's own fleet."""
    config = Path(os.environ.get("FLEET_CONFIG_DIR") or Path.home() / ".config" / "fleet")
    state = Path(os.environ.get("FLEET_STATE_DIR") or Path.home() / ".local" / "state" / "fleet")
    bench = Bench(dict(os.environ), host, engine, model, state / "fleet.db")
    with suite_in(config):
        bench.fleet("controller", "start")
        yield bench


@contextlib.contextmanager
def suite_in(config: Path) -> Iterator[None]:
    """The suite is there inside the block. One of that name that somebody wrote stays as it is, and ends this."""
    path = config / "suites" / f"{SUITE}.yaml"
    if path.exists() and path.read_text() != SUITE_YAML:
        raise SystemExit(f"{path} is a suite of yours: move it away first")
    path.parent.mkdir(exist_ok=True)
    path.write_text(SUITE_YAML)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def by_fleet(bench: Bench, side: Side) -> None:
    started = time.perf_counter()
    bench.fleet(*bench.bench_arguments(), "--dry-run", "--again")
    planned = time.perf_counter() - started
    agent = agent_cpu_seconds()
    began = time.time()
    document = bench.fleet(*bench.bench_arguments(), "--yes", "--again")
    ended = time.time()
    side.add_part(
        "agent_cpu_seconds", sum(used - agent[pid] for pid, used in agent_cpu_seconds().items() if pid in agent)
    )
    side.wall.wall_seconds.append(ended - began)
    add_parts(bench, side, planned, began, ended)
    (cell,) = document["hosts"][0]["result"]["cells"]
    if cell["state"] != "measured":
        raise SystemExit(f"not measured: {cell['problem']}")
    for row in cell["rows"]:
        if row["test_kind"] in ("pp", "tg"):
            side.add(row["test"], row["mean"])


def add_parts(bench: Bench, side: Side, planned: float, began: float, ended: float) -> None:
    """What the newest run says of itself, between two moments of the wall clock."""
    with contextlib.closing(sqlite3.connect(bench.database)) as connection:
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
    side.add_part("runner_cpu_seconds", float(details.get("runner_cpu_seconds", math.nan)))


def agent_cpu_seconds() -> dict[str, float]:
    """CPU time so far of each agent that this user runs here, by pid; none where /proc does not tell."""
    found: dict[str, float] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"fleet_agent" in words and b"serve" in words and entry.stat().st_uid == os.getuid():
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                found[entry.name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def by_hand(bench: Bench, command: tuple[list[str], dict[str, str]], side: Side) -> None:
    """Repetitions beyond those asked for are fleet's warm-up on devices that need one: thrown away here as there."""
    argv, variables = command
    started = time.perf_counter()
    done = subprocess.run(argv, env=bench.environment | variables, check=True, capture_output=True, text=True)
    side.wall.wall_seconds.append(time.perf_counter() - started)
    for row in json.loads(done.stdout):
        name = f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"
        side.add(name, statistics.fmean(row["samples_ts"][len(row["samples_ts"]) - bench.repetitions :]))


def long_enough(bench: Bench, seconds: float) -> Bench:
    """The same with as many repetitions as make the program run that long by hand."""
    bench.fleet(*bench.bench_arguments(), "--yes", "--again")  # adopts the engine and hashes the model
    side = Side()
    for _ in range(2):
        by_hand(bench, bench.commands()["measure"], side)
    return Bench(**{**vars(bench), "repetitions": math.ceil(bench.repetitions * max(1.0, seconds / side.wall.wall))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="pairs; at least 2")
    parser.add_argument("--seconds", type=float, default=3.0, help="that a run of the program lasts at least")
    parser.add_argument("--llama-bench", type=Path, help="as it is on this machine; its folder holds llama-server, too")
    parser.add_argument("--model", type=Path, help="a GGUF file; without it a random one of 100 MB is made")
    parser.add_argument("--host", default="", help="a host of transport local that `fleet up` has set up here")
    options = parser.parse_args()
    if options.host and not (options.model and options.llama_bench):
        parser.error("--host needs --model and --llama-bench")
    engine = options.llama_bench.resolve().parent if options.llama_bench else find_engine()
    model = options.model.resolve() if options.model else None
    fleet, hand = Side(wall=Samples("fleet bench")), Side(wall=Samples("by hand"))
    place = fleet_that_is_there(options.host, engine, model) if options.host and model else fleet_of_one(engine, model)
    with place as made:
        bench = long_enough(made, options.seconds)
        command = bench.commands()["measure"]
        for number in range(max(options.rounds, 2)):
            for side in (fleet, hand) if number % 2 == 0 else (hand, fleet):
                by_fleet(bench, side) if side is fleet else by_hand(bench, command, side)
    show(fleet, hand, command[0])


def show(fleet: Side, hand: Side, argv: list[str]) -> None:
    overhead = fleet.wall.wall - hand.wall.wall
    rows, tests = [], {}
    for test, means in hand.means.items():
        found = paired(means, fleet.means[test])
        shown = found[1] > 0 or found[2] < 0
        verdict = "difference shown" if shown else "no difference shown"
        rows.append([test, f"{statistics.fmean(means):,.1f} t/s", f"{statistics.fmean(fleet.means[test]):,.1f} t/s",
                     f"{found[0]:+.2f} % ({found[1]:+.2f} to {found[2]:+.2f})", verdict])  # fmt: skip
        tests[test] = {"by_hand": means, "fleet": fleet.means[test], "difference_percent": found, "verdict": verdict}
    rows.append(
        ["wall time of a cell", f"{hand.wall.wall:.2f} s", f"{fleet.wall.wall:.2f} s", f"{overhead:+.2f} s", ""]
    )
    parts = {name: statistics.median(values) for name, values in fleet.parts.items()}
    for name, seconds in parts.items():
        if not name.endswith("_cpu_seconds"):
            own = hand.wall.wall if name == "the program" else 0.0
            shown_own = f"{own:.2f} s" if own else "-"
            rows.append([f"- {name}", shown_own, f"{seconds:.2f} s", f"{seconds - own:+.2f} s", ""])
    program = parts["the program"]
    for name, seconds, during in (
        ("CPU of the runner while the program runs", parts["runner_cpu_seconds"], program),
        ("CPU of the agent during the command", parts["agent_cpu_seconds"], fleet.wall.wall),
    ):
        rows.append([name, "-", f"{seconds:.3f} s", f"{seconds / during:.2%} of a core", ""])
    report(
        "fleet bench against the same llama-bench by hand, in pairs",
        ["", "by hand", "fleet bench", "difference (95 % interval)", "verdict"],
        rows,
        {
            "tests": tests,
            "samples": [side.wall.as_json() for side in (hand, fleet)],
            "overhead_seconds": round(overhead, 3),
            "fleet_parts_seconds": {name: round(seconds, 3) for name, seconds in parts.items()},
            "runner_cpu_percent_of_a_core": round(parts["runner_cpu_seconds"] / program * 100, 3),
            "budget_overhead_seconds": BUDGET_SECONDS,
            "options_by_hand": argv[1:],
        },
    )


def paired(by_hand: list[float], fleet: list[float]) -> tuple[float, float, float]:
    """Mean of the pairs' differences in percent of the one by hand, and its 95 % interval."""
    differences = [(second - first) / first * 100 for first, second in zip(by_hand, fleet, strict=True)]
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    half = t_quantile(0.5 + CONFIDENCE / 2, len(differences) - 1) * error
    return mean, mean - half, mean + half


if __name__ == "__main__":
    main()
