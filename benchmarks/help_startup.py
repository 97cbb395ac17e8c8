"""`fleet --help` against an empty typer app: python -m benchmarks.help_startup [--rounds 21]

Both are console scripts of the same interpreter, started in turn. Budget: the ratio of the medians within 1.15.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Samples, milliseconds, report, take_command

EMPTY_APP = """\
import typer

app = typer.Typer(name="empty", pretty_exceptions_enable=False)


@app.command()
def nothing() -> None:
    pass


@app.command()
def nothing_either() -> None:
    pass
"""
# As installers write console scripts.
SCRIPT = """\
#!{python}
import sys
from {module} import {function}
if __name__ == '__main__':
    sys.exit({function}())
"""


def console_script(folder: Path, name: str, module: str, function: str) -> Path:
    path = folder / name
    path.write_text(SCRIPT.format(python=sys.executable, module=module, function=function))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="fleet-bench-") as text:
        folder = Path(text)
        (folder / "empty_typer_app.py").write_text(EMPTY_APP)
        fleet, empty = Samples("fleet --help"), Samples("empty typer app --help")
        commands = {
            "fleet": [sys.executable, str(console_script(folder, "fleet", "fleet_controller.cli.__main__", "main"))],
            "empty": [sys.executable, str(console_script(folder, "empty", "empty_typer_app", "app"))],
        }
        for command in commands.values():  # so that the first round finds every bytecode file written
            take_command(Samples("warm-up"), [*command, "--help"])
        for _ in range(rounds):
            take_command(fleet, [*commands["fleet"], "--help"])
            take_command(empty, [*commands["empty"], "--help"])
    show(fleet, empty)


def show(fleet: Samples, empty: Samples) -> None:
    assert fleet.cpu is not None and empty.cpu is not None
    rows = [[samples.name, milliseconds(samples.wall), milliseconds(samples.cpu)] for samples in (fleet, empty)]
    rows.append(["ratio", f"{fleet.wall / empty.wall:.3f}", f"{fleet.cpu / empty.cpu:.3f}"])
    report(
        "fleet --help against an empty typer app",
        ["median", "wall", "CPU"],
        rows,
        {
            "samples": [fleet.as_json(), empty.as_json()],
            "wall_ratio": round(fleet.wall / empty.wall, 3),
            "cpu_ratio": round(fleet.cpu / empty.cpu, 3),
            "budget_ratio": 1.15,
        },
    )


if __name__ == "__main__":
    main()
