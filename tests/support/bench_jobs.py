"""Steps that measure with the real llama-bench."""

from pathlib import Path

from fleet_agent.jobs.model import BenchStep, DeviceWatch, Step, ToolRef

ENGINE = "llama.cpp-test-00000000"


def bench(model: Path, *arguments: str, **more: object) -> Step:
    """A bench with llama-bench that judges nobody: the machine that runs the tests is no quiet one.

    One thread: several wait for each other without sleeping, which takes for ever where others compute, too.
    """
    words = ("-m", str(model), "-p", "32", "-n", "4", "-t", "1", "-o", "json", "--progress", *arguments)
    values: dict[str, object] = {
        "watch": DeviceWatch(idle_wait_seconds=60.0, interval_seconds=0.05),
        "arguments": words,
        "mark": "benchmark ",
        **more,
    }
    return Step("measure", bench=BenchStep(ToolRef(ENGINE, "bin/llama-bench"), **values))  # type: ignore[arg-type]
