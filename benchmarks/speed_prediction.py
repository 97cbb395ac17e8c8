"""How well speeds are predicted that nobody measured: python -m benchmarks.speed_prediction

    [--data ../shared/data] [--score rows.csv [--models models.csv]] [--quick]

Data: the rows and models that ship as reference (lab notes, and published tables), or the files of the same names in a
folder: public_results.csv, lab_notes_results.csv, models.csv. Chips are the inventory's.

The split is fixed: one architecture (the `model` of a row) is left out at a time, on every device and engine; the model
is fitted to all other rows and predicts those. No row is used for its own prediction, and none of its architecture.
A second split leaves out one device at a time: what a machine is worth that nobody measured; --quick leaves it out.

With --score, rows of another file (columns of public_results.csv; optional: driver, flags, client) are predicted from
all reference rows but the ones of the same model, device and engine; --models has shapes of models that only it names.
benchmarks/data/public_unseen.csv is such a file: figures of others, found after the model was made, fitted by nobody.

Rows that a fleet measured itself and that ship as reference are predicted from the lab's data alone.

The priors are those that ship: they were written with the reference rows in sight, so their widths are not independent
of them. Regret: benchmarks/speed_choices.py. The five trials of mlx_lm.benchmark are one row, their average.
"""

import argparse
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import report
from benchmarks.speed_choices import Choice, choices
from benchmarks.speed_tables import percent, quantile, table
from fleet_controller.choosing.devices import device_named
from fleet_controller.choosing.reference import own_speed, reference_speeds
from fleet_controller.choosing.speed import COVERED, Prediction, SpeedModel
from fleet_controller.choosing.terms import matrix_operations
from fleet_controller.choosing.work import Cell, MeasuredSpeed, ModelWork, Phase
from fleet_controller.results.reference_files import load_reference
from fleet_inventory.reference_data import reference_files
from fleet_inventory.speed_reference import (
    NOTES_FILE,
    SpeedFigure,
    SpeedModelShape,
    load_public_figures,
    load_shapes,
    load_speed_figures,
    load_speed_models,
)

TARGETS = {
    Phase.DECODE: "median <= 12 %, 90th percentile <= 45 %, coverage 65 to 92 %",
    Phase.PREFILL: "median <= 30 %, coverage 65 to 92 %",
}
MOST_REGRET = 0.1
BOOTSTRAPS, SEED = 2000, 1


@dataclass(frozen=True)
class Judged:
    """A measured row, what was predicted without its architecture, and what a naive roofline says."""

    row: MeasuredSpeed
    prediction: Prediction

    @property
    def cell(self) -> Cell:
        return self.row.cell

    @property
    def error(self) -> float:
        return abs(self.prediction.tokens_per_second / self.row.tokens_per_second - 1)

    @property
    def naive_error(self) -> float:
        return abs(roofline(self.cell) / self.row.tokens_per_second - 1)

    @property
    def covered(self) -> bool:
        return self.prediction.low <= self.row.tokens_per_second <= self.prediction.high


def roofline(cell: Cell) -> float:
    """Bytes over bandwidth, or operations over arithmetic: what a data sheet promises."""
    if cell.phase is Phase.DECODE:
        return cell.device.bandwidth / (cell.read_bytes + cell.model.cached_bytes(cell.middle_depth))
    operations = 2 * cell.model.parameters_read + cell.model.score_operations(cell.middle_depth)
    return matrix_operations(cell) / operations


def left_out(rows: Sequence[MeasuredSpeed]) -> tuple[list[Judged], dict[str, SpeedModel]]:
    """Every row predicted without its architecture, and the model fitted without each."""
    judged, models = [], {}
    for name in sorted({row.cell.model.name for row in rows}):
        models[name] = SpeedModel(row for row in rows if row.cell.model.name != name)
        judged += [Judged(row, models[name].predict(row.cell)) for row in rows if row.cell.model.name == name]
    return judged, models


def devices_left_out(rows: Sequence[MeasuredSpeed]) -> list[Judged]:
    """Every row predicted without its device: what a machine is worth that nobody measured."""
    judged: list[Judged] = []
    for name in sorted({row.cell.device.name for row in rows}):
        model = SpeedModel(row for row in rows if row.cell.device.name != name)
        judged += [Judged(row, model.predict(row.cell)) for row in rows if row.cell.device.name == name]
    return judged


def fleet_rows(shapes: Mapping[str, SpeedModelShape]) -> list[MeasuredSpeed]:
    """Rows that a fleet measured and exported, of models whose shape is known."""
    found = []
    for result in load_reference(path for path in reference_files() if path.name != NOTES_FILE)[0]:
        device, shape = device_named(result.chip), shapes.get(result.model.lower())
        if device is None or shape is None or not result.artifact_bytes:
            continue
        row = own_speed(result, ModelWork.model_validate(shape.model_dump()), device, result.artifact_bytes)
        found += [row] if row else []
    return found


def score_file(
    path: Path, models: Path | None, shapes: Mapping[str, SpeedModelShape], rows: Sequence[MeasuredSpeed]
) -> None:
    """Prints errors of rows from elsewhere, and which of them nothing is predicted for."""
    figures = load_public_figures(path)
    more = load_shapes(models) if models else {}
    scored = scored_rows(figures, {**shapes, **more})
    print(f"{len(scored)} of {len(figures)} rows: model and device are known")
    for figure in unknown_figures(figures, {**shapes, **more}):
        print(f"  nothing predicted: {figure}")
    score(held_out(scored, rows))


def scored_rows(figures: Iterable[SpeedFigure], shapes: Mapping[str, SpeedModelShape]) -> list[MeasuredSpeed]:
    """As reference_speeds, and with guesses for devices that the inventory does not have."""
    return list(reference_speeds(figures, shapes, device_named))


def unknown_figures(figures: Iterable[SpeedFigure], shapes: Mapping[str, SpeedModelShape]) -> list[str]:
    names = {
        f"{one.model} on {one.device}" for one in figures if one.model not in shapes or not device_named(one.device)
    }
    return sorted(names)


def held_out(scored: Sequence[MeasuredSpeed], rows: Sequence[MeasuredSpeed]) -> list[Judged]:
    """Rows from elsewhere, each predicted without what is known of its model on its device and engine."""

    def subject(row: MeasuredSpeed) -> tuple[str, str, str]:
        return row.cell.model.name, row.cell.device.name, row.cell.engine.key

    everything = SpeedModel(rows)
    known = {subject(row) for row in rows}
    judged: list[Judged] = []
    for held in sorted({subject(row) for row in scored}):
        model = SpeedModel(row for row in rows if subject(row) != held) if held in known else everything
        judged += [Judged(row, model.predict(row.cell)) for row in scored if subject(row) == held]
    return judged


def grouped(judged: Iterable[Judged], key: Callable[[Judged], str]) -> dict[str, list[Judged]]:
    groups: dict[str, list[Judged]] = defaultdict(list)
    for item in judged:
        groups[key(item)].append(item)
    return dict(sorted(groups.items()))


def error_table(phase: Phase, judged: Sequence[Judged], by: str, key: Callable[[Judged], str]) -> None:
    rows = []
    for name, group in [*grouped(judged, key).items(), ("all", list(judged))]:
        errors = [item.error for item in group]
        bias = statistics.median(
            math.log(item.prediction.tokens_per_second / item.row.tokens_per_second) for item in group
        )
        covered = sum(item.covered for item in group) / len(group)
        numbers = (quantile(errors, 0.5), quantile(errors, 0.9), max(errors))
        naive = quantile([item.naive_error for item in group], 0.5)
        rows.append(
            (
                name,
                str(len(group)),
                *map(percent, numbers),
                f"{math.expm1(bias):+.1%}",
                percent(covered),
                percent(naive),
            )
        )
    print(f"\n### {phase.name.lower()} by {by}\n")
    print(
        table(
            (by, "n", "median error", "90th percentile", "worst", "median bias", "within 80 %", "roofline median"), rows
        )
    )


def macro(judged: Sequence[Judged]) -> dict[str, Any]:
    """Means over architectures, each counting once, with the 95 % interval of a bootstrap over architectures."""
    groups = list(grouped(judged, lambda item: item.cell.model.name).values())
    draw = random.Random(SEED)
    figures: dict[str, Callable[[list[Judged]], float]] = {
        "median_error": lambda group: quantile([item.error for item in group], 0.5),
        "coverage": lambda group: sum(item.covered for item in group) / len(group),
    }
    found: dict[str, Any] = {"architectures": len(groups)}
    for name, figure in figures.items():
        values = [figure(group) for group in groups]
        means = [statistics.fmean(draw.choices(values, k=len(values))) for _ in range(BOOTSTRAPS)]
        interval = [round(quantile(means, share), 3) for share in (0.025, 0.975)]
        found[name] = {"mean": round(statistics.fmean(values), 3), "bootstrap_95": interval}
    return found


def regret_table(phase: Phase, found: Sequence[Choice]) -> dict[str, Any]:
    print(f"\n### regret of the choice for {phase.name.lower()}, n = {len(found)}\n")
    lines = [(c.device, c.model, str(c.depth), str(c.candidates), c.chosen, c.best, percent(c.regret)) for c in found]
    print(table(("device", "model", "depth", "candidates", "chosen", "measured best", "regret"), lines))
    regrets = [choice.regret for choice in found]
    above = sum(regret > MOST_REGRET for regret in regrets)
    return {
        "n": len(found),
        "median": round(quantile(regrets, 0.5), 4),
        "worst": round(max(regrets), 4),
        "above_target": above,
    }


def decay_table(judged: Iterable[Judged], device: str, model: str) -> None:
    """Decode by depth as measured and as predicted without any row of the model."""
    rows = [item for item in judged if (item.cell.device.name, item.cell.model.name) == (device, model)]
    rows = [item for item in rows if item.cell.phase is Phase.DECODE]
    lines = [
        (
            item.cell.quantization,
            str(item.cell.depth),
            f"{item.row.tokens_per_second:.1f}",
            f"{item.prediction.tokens_per_second:.1f}",
            f"{item.prediction.low:.1f} to {item.prediction.high:.1f}",
        )
        for item in rows
    ]
    print(f"\n### decode of {model} on {device} by depth, predicted without any of its rows\n")
    print(table(("quantization", "depth", "measured t/s", "predicted t/s", "80 % interval"), lines))


def score(judged: Sequence[Judged]) -> None:
    for phase in Phase:
        of_phase = [item for item in judged if item.cell.phase is phase]
        if of_phase:
            error_table(phase, of_phase, "architecture", lambda item: item.cell.model.name)
            error_table(phase, of_phase, "device", lambda item: item.cell.device.name)


def summary_line(
    phase: Phase, judged: Sequence[Judged], over: dict[str, Any], regret: dict[str, Any]
) -> tuple[str, ...]:
    errors = [item.error for item in judged]
    coverage = over["coverage"]
    low, high = coverage["bootstrap_95"]
    return (
        phase.name.lower(),
        str(len(errors)),
        percent(quantile(errors, 0.5)),
        percent(quantile(errors, 0.9)),
        f"{coverage['mean']:.0%} ({low:.0%} to {high:.0%})",
        f"median {percent(regret['median'])}, worst {percent(regret['worst'])}, "
        f"{regret['above_target']} of {regret['n']} above {MOST_REGRET:.0%}",
        TARGETS[phase],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the three files (default: those that ship)")
    parser.add_argument("--score", type=Path, help="rows from elsewhere, with the columns of public_results.csv")
    parser.add_argument("--models", type=Path, help="shapes of more models, with the columns of models.csv")
    parser.add_argument("--quick", action="store_true", help="without the second split")
    arguments = parser.parse_args()
    shapes = load_speed_models(arguments.data)
    rows = reference_speeds(load_speed_figures(arguments.data), shapes)
    if arguments.score:
        score_file(arguments.score, arguments.models, shapes, rows)
        return
    judged, models = left_out(rows)
    summary, details = [], dict[str, object]()
    for phase in Phase:
        of_phase = [item for item in judged if item.cell.phase is phase]
        error_table(phase, of_phase, "architecture", lambda item: item.cell.model.name)
        error_table(phase, of_phase, "device", lambda item: item.cell.device.name)
        error_table(phase, of_phase, "engine", lambda item: item.cell.engine.key)
        regret = regret_table(phase, choices(rows, models, phase))
        over = macro(of_phase)
        details[phase.name.lower()] = {"macro": over, "regret": regret}
        summary.append(summary_line(phase, of_phase, over, regret))
    decay_table(judged, "RTX 4090", "glm-4.7-flash")
    if unseen_rows := fleet_rows(shapes):
        print("\n## rows that fleet measured, predicted from the lab's data")
        everything = SpeedModel(rows)
        score([Judged(row, everything.predict(row.cell)) for row in unseen_rows])
    unseen = [] if arguments.quick else devices_left_out(rows)
    print("\n## one device left out at a time" if unseen else "")
    for phase in Phase if unseen else ():
        of_phase = [item for item in unseen if item.cell.phase is phase]
        error_table(phase, of_phase, "device", lambda item: item.cell.device.name)
    print()
    header = ("", "n", "median error", "90th percentile", f"macro coverage of {COVERED:.0%}", "regret", "targets")
    report("speed prediction, one architecture left out at a time", header, summary, details)


if __name__ == "__main__":
    main()
