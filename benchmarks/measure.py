"""What every benchmark here shares: samples in turn, medians, one Markdown table and one JSON document.

Two things are compared by taking turns, A B A B, so that a noisy machine is noisy for both. CPU time of finished child
processes is taken beside wall time, because it hardly depends on what else runs.
"""

import asyncio
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LOAD_BEFORE = round(os.getloadavg()[0], 2)


@dataclass
class Samples:
    """Seconds of one subject: wall time, and CPU time of its processes where that was taken."""

    name: str
    wall_seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @property
    def wall(self) -> float:
        return statistics.median(self.wall_seconds)

    @property
    def cpu(self) -> float | None:
        return statistics.median(self.cpu_seconds) if self.cpu_seconds else None

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "n": len(self.wall_seconds),
            "wall_median_seconds": round(self.wall, 5),
            "wall_min_seconds": round(min(self.wall_seconds), 5),
            "wall_max_seconds": round(max(self.wall_seconds), 5),
            "cpu_median_seconds": None if self.cpu is None else round(self.cpu, 5),
        }


def take_command(samples: Samples, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Runs a command to its end and notes how long it took. Raises CalledProcessError where it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(argv, env=environment, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    samples.wall_seconds.append(time.perf_counter() - started)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    samples.cpu_seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


async def take(samples: Samples, work: Callable[[], Awaitable[object]]) -> None:
    """Awaits `work` and notes how long it took."""
    started = time.perf_counter()
    await work()
    samples.wall_seconds.append(time.perf_counter() - started)


async def side_by_side(work: Sequence[Callable[[], Awaitable[object]]], at_once: int) -> None:
    """All of `work`, at most `at_once` at a time."""
    gate = asyncio.Semaphore(at_once)

    async def one(item: Callable[[], Awaitable[object]]) -> None:
        async with gate:
            await item()

    await asyncio.gather(*(one(item) for item in work))


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def report(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], details: Mapping[str, object]) -> None:
    """Prints the Markdown table, then the JSON document, to standard output."""
    table = [header, ["---"] * len(header), *rows]
    print(f"## {title}\n")
    print("\n".join("| " + " | ".join(row) + " |" for row in table))
    print()
    print(json.dumps({"benchmark": title, **surroundings(), **details}, indent=1))


def surroundings() -> dict[str, object]:
    """When and where: what a figure is worth depends on it."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "cpu_count": os.cpu_count(),
        "load_average_1m_before": LOAD_BEFORE,
        "load_average_1m_after": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def run_fleet(environment: dict[str, str], *arguments: str) -> Any:
    """Runs a command of fleet; its JSON document, or None without --json. Ends the benchmark where it fails."""
    argv = [sys.executable, "-m", "fleet_controller.cli", *arguments]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"fleet {' '.join(arguments)} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout) if "--json" in arguments else None
