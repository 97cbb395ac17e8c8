"""What a minute of calibration is worth: python -m benchmarks.calibration --llama-bench PATH [--device gpu|cpu]

    [--chip NAME] [--held-out FILE.gguf ...] [--no-made-up] [--rows FILE.json] [--folder DIR]

Needs a llama-bench, and no network. The made-up models of `fleet calibrate` are written by the agent's own code and
measured with the same arguments; then models that were held out are measured: GGUF files that are given, and made-up
ones with the shapes of real dense models (Qwen3 0.6B, 1.7B and 4B, Llama 3.1 8B; on a CPU the two smallest), at two
depths.
Each held-out figure is predicted from the reference rows that ship with fleet (without), and from these and the
calibration (with). No row of a held-out model is ever fitted to.

A chip that the inventory does not know is guessed first. --chip hides a known chip behind another name, to see how
well an unknown one does.
--rows keeps what was measured, and takes it from there instead of measuring where the file exists.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gguf_work import work_of_header
from benchmarks.measure import report
from fleet_agent.jobs.model import GeneratedModel
from fleet_agent.measuring.generated_model import pieces
from fleet_controller.benchmarking.calibration import CalibrationModel, calibration_work, load_calibration
from fleet_controller.benchmarking.parsers import llama_bench
from fleet_controller.benchmarking.suites import Part
from fleet_controller.choosing.devices import device_named
from fleet_controller.choosing.reference import reference_speeds, runtime_of
from fleet_controller.choosing.speed import Prediction, SpeedModel
from fleet_controller.choosing.work import Cell, DeviceFacts, EngineFacts, MeasuredSpeed, ModelWork, Phase
from fleet_controller.hub.gguf import read_file
from fleet_controller.hub.names import quantization_of_file
from fleet_inventory.speed_reference import load_speed_figures, load_speed_models

NOWHERE = Path("/nonexistent")
# layers, width, feed forward, query heads, key-value heads: the makers' config.json.
SHAPES = {
    "qwen3-0.6b": (28, 1024, 3072, 16, 8),
    "qwen3-1.7b": (28, 2048, 6144, 16, 8),
    "qwen3-4b": (36, 2560, 9728, 32, 8),
    "llama-3.1-8b": (32, 4096, 14336, 32, 8),
}
HELD_OUT = {"gpu": tuple(SHAPES), "cpu": ("qwen3-0.6b", "qwen3-1.7b")}
PARTS = {
    "gpu": Part(prompt_tokens=512, generation_tokens=64, depths=(0, 4096), repetitions=3),
    "cpu": Part(prompt_tokens=128, generation_tokens=16, depths=(0, 512), repetitions=2),
}


@dataclass(frozen=True)
class Subject:
    """A model to measure: a file that is there, or one to make."""

    name: str
    quantization: str
    part: Part
    path: Path | None = None
    made: CalibrationModel | None = None


@dataclass(frozen=True)
class Bench:
    llama_bench: Path
    folder: Path
    device: str

    def rows(self, subject: Subject) -> list[dict[str, object]]:
        """llama-bench's own documents; a made-up model is gone afterwards."""
        path = subject.path or self.folder / "made.gguf"
        if subject.made is not None:
            with path.open("wb") as stream:
                stream.writelines(pieces(GeneratedModel(**subject.made.generated.model_dump())))
        try:
            return self._measured(path, subject.part)
        finally:
            if subject.made is not None:
                path.unlink()

    def _measured(self, path: Path, part: Part) -> list[dict[str, object]]:
        repetitions = part.repetitions + (self.device == "gpu")  # the first one is thrown away
        argv = [str(self.llama_bench), "-p", str(part.prompt_tokens), "-n", str(part.generation_tokens), "-o", "json"]
        argv += ["-d", ",".join(map(str, part.depths)), "-r", str(repetitions), "--model", str(path)]
        argv += ["-ngl", "0"] if self.device == "cpu" else []
        done = subprocess.run(argv, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        documents: list[dict[str, object]] = json.loads(done.stdout)
        return documents


def calibration_subjects(device: str) -> list[Subject]:
    shipped = load_calibration(NOWHERE)
    cells = shipped.gpu if device == "gpu" else shipped.cpu
    return [Subject(cell.model.name, cell.model.quantization, cell.part, made=cell.model) for cell in cells]


def held_out_subjects(device: str, files: Sequence[Path], made_up: bool) -> list[Subject]:
    found = [Subject(path.stem, quantization_of_file(str(path)), PARTS[device], path=path) for path in files]
    for name in HELD_OUT[device] if made_up else ():
        layers, hidden, feed_forward, heads, kv_heads = SHAPES[name]
        for quantization in ("Q4_K_M", "Q8_0"):
            made = CalibrationModel(
                layers=layers, hidden_size=hidden, feed_forward_size=feed_forward, heads=heads,
                key_value_heads=kv_heads, quantization=quantization,
            )  # fmt: skip
            found.append(Subject(name, quantization, PARTS[device], made=made))
    return found


def work_of(subject: Subject) -> ModelWork:
    if subject.made is not None:
        work = calibration_work(subject.made.name)
    else:
        assert subject.path is not None
        work = work_of_header(subject.name, read_file(subject.path))
    assert work is not None, f"{subject.name}: its header does not tell its shape"
    return work.model_copy(update={"name": subject.name})


def speeds(
    subject: Subject, documents: Sequence[dict[str, object]], device: DeviceFacts, discarded: int
) -> Iterator[MeasuredSpeed]:
    work = work_of(subject)
    first = documents[0]
    engine = EngineFacts(
        backend="llama.cpp",
        runtime=runtime_of(device, str(first.get("backends", ""))),
        version=f"b{first['build_number']}" if first.get("build_number") else "",
    )
    for row in llama_bench({"stdout": json.dumps(documents)}, subject.part, discarded):
        phase = Phase(row.kind.value)
        yield MeasuredSpeed(
            cell=Cell(
                model=work,
                device=device,
                engine=engine,
                quantization=subject.quantization,
                weights_bytes=float(str(first["model_size"])),
                phase=phase,
                tokens=row.generation_tokens if phase is Phase.DECODE else row.prompt_tokens,
                depth=row.depth,
            ),
            tokens_per_second=row.mean,
            source="this machine",
        )


def error(prediction: Prediction, row: MeasuredSpeed) -> float:
    return abs(prediction.tokens_per_second / row.tokens_per_second - 1)


def told(prediction: Prediction) -> str:
    return f"{prediction.tokens_per_second:.4g} ({prediction.low:.4g} to {prediction.high:.4g})"


def summary(pairs: Sequence[tuple[Prediction, MeasuredSpeed]]) -> dict[str, float]:
    errors = [error(prediction, row) for prediction, row in pairs]
    inside = sum(prediction.low <= row.tokens_per_second <= prediction.high for prediction, row in pairs)
    return {
        "n": len(pairs),
        "median_error": round(statistics.median(errors), 4),
        "worst_error": round(max(errors), 4),
        "within_80_percent": round(inside / len(pairs), 3),
        "median_width": round(statistics.median(prediction.high / prediction.low for prediction, _ in pairs), 3),
    }


def measured(arguments: argparse.Namespace, device: str) -> tuple[list[Subject], list[Subject], dict[str, object]]:
    """What is to be measured, and every subject's documents by its name and quantization."""
    calibration = calibration_subjects(device)
    held_out = held_out_subjects(device, arguments.held_out or [], not arguments.no_made_up)
    if arguments.rows and arguments.rows.exists():
        return calibration, held_out, json.loads(arguments.rows.read_text())
    folder = Path(tempfile.mkdtemp(prefix="calibration-", dir=arguments.folder))
    bench = Bench(arguments.llama_bench, folder, device)
    try:
        found: dict[str, object] = {f"{one.name} {one.quantization}": bench.rows(one) for one in calibration + held_out}
    finally:
        shutil.rmtree(folder)
    if arguments.rows:
        arguments.rows.write_text(json.dumps(found))
    return calibration, held_out, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-bench", type=Path, help="a build for the device")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--chip", default="", help="its name, where it is not the one that llama-bench says")
    parser.add_argument("--held-out", type=Path, nargs="+", metavar="FILE", help="GGUF files to predict and measure")
    parser.add_argument("--no-made-up", action="store_true", help="hold out the given files only")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="keep what was measured, or take it from there")
    parser.add_argument("--folder", type=Path, help="where the made-up models are written, one at a time")
    arguments = parser.parse_args()
    calibration, held_out, documents = measured(arguments, arguments.device)

    def documents_of(subject: Subject) -> list[dict[str, object]]:
        return documents[f"{subject.name} {subject.quantization}"]  # type: ignore[return-value]

    first = documents_of(calibration[0])[0]
    chip = arguments.chip or str(first["gpu_info" if arguments.device == "gpu" else "cpu_info"]).split(",")[0]
    device = device_named(chip)
    assert device is not None, f"{chip}: the name says nothing; give one with --chip"
    discarded = int(arguments.device == "gpu")
    learned = [row for one in calibration for row in speeds(one, documents_of(one), device, discarded)]
    to_predict = [row for one in held_out for row in speeds(one, documents_of(one), device, discarded)]
    reference = reference_speeds(load_speed_figures(), load_speed_models())
    without = SpeedModel(reference)
    with_it = SpeedModel([*reference, *learned])
    before = [(without.predict(row.cell), row) for row in to_predict]
    after = [(with_it.predict(row.cell), row) for row in to_predict]
    lines = [
        (
            row.cell.model.name,
            row.cell.quantization,
            f"{row.cell.phase.value}{row.cell.tokens}" + (f" @ d{row.cell.depth}" if row.cell.depth else ""),
            f"{row.tokens_per_second:.4g}",
            told(one),
            f"{error(one, row):.1%}",
            told(other),
            f"{error(other, row):.1%}",
        )
        for (one, row), (other, _) in zip(before, after, strict=True)
    ]
    details = {
        "chip": chip,
        "chip_is": "guessed" if device.guessed else "in the inventory",
        "device": device.model_dump(mode="json"),
        **{
            phase.name.lower(): {
                "without": summary([pair for pair in before if pair[1].cell.phase is phase]),
                "with": summary([pair for pair in after if pair[1].cell.phase is phase]),
            }
            for phase in Phase
        },
    }
    header = ("model", "quantization", "test", "measured t/s", "without", "error", "with", "error")
    report(f"predictions on {chip} without and with calibration", header, lines, details)


if __name__ == "__main__":
    main()
