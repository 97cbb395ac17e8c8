"""100,000 results: `fleet matrix` and `fleet results list` against `fleet --help`.

python -m benchmarks.results_scale [--rounds 11] [--results 100000]

Every command is a process of its own with the controller inside, the slowest way there is. Budgets: matrix under 1 s,
list under 0.3 s more than --help.
"""

import argparse
import itertools
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.help_startup import console_script
from benchmarks.measure import Samples, milliseconds, report, take_command
from fleet_controller.results.columns import DeviceSample, Metric, Result, Run
from fleet_controller.results.store import save_batches
from fleet_controller.settings import Settings
from fleet_controller.state import StateDatabase

HOSTS, MODELS, QUANTIZATIONS = 20, 10, ("Q8_0", "Q4_K_M", "BF16")
DEPTHS = (0, 8192, 16384, 32768, 65536)
START_UNIX_MS = 1_760_000_000_000
RAW = "raw output of a tool\n" * 200


def fill(path: Path, wanted: int) -> int:
    """Write runs of ten rows each (prefill and decode at five depths) until there are `wanted`; how many there are."""
    database = StateDatabase(path)
    cells = itertools.cycle(itertools.product(range(MODELS), range(HOSTS), QUANTIZATIONS))
    batches = []
    for number in range(wanted // (2 * len(DEPTHS))):
        model, host, quantization = next(cells)
        batches.append(_run(f"run-{number}", model, host, quantization, START_UNIX_MS + number * 60_000))
        if len(batches) == 500:
            save_batches(database, batches)
            batches = []
    save_batches(database, batches)
    count = int(database.connection.execute("SELECT count(*) FROM results").fetchone()[0])
    database.close()
    return count


def _run(
    run_id: str, model: int, host: int, quantization: str, finished_unix_ms: int
) -> tuple[list[Result], list[Run], list[DeviceSample]]:
    rows = [
        Result(
            run_id=run_id,
            host=f"gpu{host}",
            chip="NVIDIA GeForce RTX 4090",
            model=f"model-{model}",
            quantization=quantization,
            backend="llama.cpp",
            backend_version="b8396",
            client="llama-bench",
            test_kind=kind,
            prompt_tokens=1024 if kind is Metric.PREFILL else 0,
            generation_tokens=64 if kind is Metric.DECODE else 0,
            depth=depth,
            repetitions=5,
            mean=100.0 + (finished_unix_ms // 60_000) % 17,
            deviation=1.5,
            samples=(99.0, 100.0, 101.0, 100.5, 99.5),
            finished_unix_ms=finished_unix_ms,
        )
        for depth in DEPTHS
        for kind in (Metric.PREFILL, Metric.DECODE)
    ]
    samples = [DeviceSample(run_id=run_id, unix_ms=finished_unix_ms + second, power_watts=300.0) for second in range(5)]
    return rows, [Run(run_id=run_id, host=f"gpu{host}", stdout=RAW)], samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--results", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleet-bench-") as text:
        folder = Path(text)
        places = {f"FLEET_{name.upper()}_DIR": str(folder / name) for name in ("config", "state", "runtime")}
        for place in places.values():
            Path(place).mkdir(mode=0o700)
        environment = {**os.environ, **places}
        os.environ.update(places)
        count = fill(Settings.from_environment().database_file, options.results)
        script = str(console_script(folder, "fleet", "fleet_controller.cli.__main__", "main"))
        commands = {
            "--help": ["--help"],
            "results list": ["results", "list"],
            "matrix": ["matrix"],
            "matrix of one model": ["matrix", "model-3", "--depth", "8192"],
            "matrix as HTML": ["matrix", "--format", "html"],
        }
        found = {name: Samples(f"fleet {name}") for name in commands}
        for arguments in commands.values():
            take_command(Samples("warm-up"), [sys.executable, script, *arguments], environment)
        for _ in range(options.rounds):
            for name, arguments in commands.items():
                take_command(found[name], [sys.executable, script, *arguments], environment)
    show(count, found)


def show(count: int, found: dict[str, Samples]) -> None:
    help_only = found["--help"]
    assert help_only.cpu is not None
    rows = []
    for samples in found.values():
        assert samples.cpu is not None
        rows.append(
            [
                samples.name,
                milliseconds(samples.wall),
                milliseconds(samples.cpu),
                f"{samples.wall / help_only.wall:.2f}",
                milliseconds(samples.wall - help_only.wall),
                milliseconds(samples.cpu - help_only.cpu),
            ]
        )
    report(
        f"Commands on {count:,} results",
        ["median", "wall", "CPU", "wall / --help", "wall more than --help", "CPU more than --help"],
        rows,
        {
            "results": count,
            "samples": [samples.as_json() for samples in found.values()],
            "budget_matrix_seconds": 1.0,
            "budget_list_more_than_help_seconds": 0.3,
        },
    )


if __name__ == "__main__":
    main()
