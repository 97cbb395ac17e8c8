"""Tables and texts as the tools print them: llama-bench's and llama-benchy's Markdown, `mlx_lm benchmark`'s lines.

One document may hold several, with prose between them; the lab notes are such a document, and what
`fleet results export --format md` writes is another.
"""

import itertools
import re
import shlex
from dataclasses import dataclass, field
from typing import Any

from fleet_controller.results.columns import DeviationKind, Metric
from fleet_controller.results.importing.llama_benchy import TEST as BENCHY_TEST
from fleet_controller.results.importing.llama_benchy import test_columns
from fleet_controller.results.importing.model import Reading, model_and_quantization, model_and_type
from fleet_controller.results.tools import BENCHY_CONTEXT, LLAMA_BENCH, LLAMA_BENCHY, MLX_LM_BENCHMARK

FIGURE = re.compile(r"(-?[\d.]+)(?: ± ([\d.]+|nan))?")
LLAMA_TEST = re.compile(r"(?:pp(?P<prompt>\d+))?\+?(?:tg(?P<generation>\d+))?(?: @ d(?P<depth>\d+))?")
BUILD = re.compile(r"build: (\S+) \((\d+)\)\s*$")
DEVICE = re.compile(r"\s*Device \d+: (.+?), compute capability")
COMMAND = re.compile(r"\s*`?\$ (?P<command>.*(?:llama-bench|llama-benchy|mlx_lm|llama-server|vllm|sglang).*)")
TIMING = re.compile(r"Timing with prompt_tokens=(\d+), generation_tokens=(\d+), batch_size=(\d+)\.")
TRIAL = re.compile(
    r"(?P<what>Trial \d+|Averages):\s+prompt_tps=(?P<pp>[\d.]+), generation_tps=(?P<tg>[\d.]+)"
    r", peak_memory=(?P<memory>[\d.]+)(?:, total_time=(?P<seconds>[\d.]+))?\s*$"
)
BYTES = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}
COUNTS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
# Columns of llama-bench's table by the names that it prints; the others it prints under their own.
SHORT_NAMES = {
    "ngl": "n_gpu_layers", "threads": "n_threads", "sm": "split_mode", "nkvo": "no_kv_offload", "fa": "flash_attn",
    "mmap": "use_mmap", "dio": "use_direct_io", "embd": "embeddings", "nopo": "no_op_offload", "noh": "no_host",
    "lm": "load_mode", "rpk": "repack", "fitt": "fit_target",
    "dev": "devices", "ts": "tensor_split", "ot": "tensor_buft_overrides", "mg": "main_gpu",
}  # fmt: skip
BENCHY_COLUMNS = {
    "t/s": (Metric.PREFILL, Metric.DECODE),
    "t/s (total)": (Metric.PREFILL, Metric.DECODE),
    "t/s (req)": (Metric.PREFILL_PER_REQUEST, Metric.DECODE_PER_REQUEST),
    "peak t/s": (Metric.PEAK_DECODE, Metric.PEAK_DECODE),
    "peak t/s (req)": (Metric.PEAK_PER_REQUEST, Metric.PEAK_PER_REQUEST),
    "ttfr (ms)": (Metric.TIME_TO_FIRST_RESPONSE, Metric.TIME_TO_FIRST_RESPONSE),
    "est_ppt (ms)": (Metric.ESTIMATED_PREFILL_TIME, Metric.ESTIMATED_PREFILL_TIME),
    "e2e_ttft (ms)": (Metric.TIME_TO_FIRST_TOKEN, Metric.TIME_TO_FIRST_TOKEN),
}
# A word of a server's command line -> whose it is.
SERVERS = {"llama-server": "llama.cpp", "vllm": "vllm", "sglang": "sglang", "mlx_lm": "mlx-lm"}
REPAIR = "repair or remove that line, then repeat"


@dataclass
class _Table:
    """A table or text that is being read."""

    tool: str
    first_line: int
    header: list[str]
    command: str = ""
    server_command: str = ""
    chip: str = ""
    lines: list[tuple[int, str]] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)
    build: tuple[str, str] = ("", "")


def read_text(reading: Reading) -> None:
    """All tables of a text. A file without any is a problem of its own."""
    tables = _tables(reading.text)
    for table in tables:
        _READERS[table.tool](reading, table)
    if not tables:
        reading.problem(
            0,
            "no results are found in it",
            "give JSON, JSONL, CSV or Markdown of llama-bench, llama-benchy, mlx_lm benchmark, vllm bench serve, "
            "sglang.bench_serving, or of fleet results export",
        )


def _tables(text: str) -> list[_Table]:
    tables: list[_Table] = []
    current: _Table | None = None
    command = server_command = chip = ""
    for number, line in _joined(text):
        header = _cells(line)
        tool = _tool(line, header)
        if tool:
            served = server_command if tool == LLAMA_BENCHY else ""
            current = _Table(tool, number, header, command, served, chip, raw=[line])
            tables.append(current)
        elif current and (line.startswith("|") or (current.tool == MLX_LM_BENCHMARK and TRIAL.match(line))):
            current.raw.append(line)
            if not re.fullmatch(r"[|:\- ]+", line):
                current.lines.append((number, line))
        elif current and current.tool == MLX_LM_BENCHMARK and line.startswith(("Trial", "Averages")):
            current.lines.append((number, line))
        elif current and (built := BUILD.match(line)):
            current.build = (built[1], built[2])
            current.raw += ["", line]
            current = None
        elif found := COMMAND.match(line):
            current = None
            told = found["command"].strip().rstrip("`")
            bench = re.search(r"llama-bench|mlx_lm[. ]benchmark", told)
            command, server_command = (told, server_command) if bench else (command, told)
            chip = chip if "llama-benchy" in told else ""  # what llama-bench printed of its device is said once a run
        elif found := DEVICE.match(line):
            chip = found[1]
    return tables


def _joined(text: str) -> list[tuple[int, str]]:
    """Lines with their numbers; a command that goes on after a backslash is one line."""
    joined: list[tuple[int, str]] = []
    pending: tuple[int, str] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        start, before = pending or (number, "")
        whole = before + line.strip() if before else line
        pending = (start, whole[:-1].rstrip() + " ") if line.endswith("\\") else None
        if pending is None:
            joined.append((start, whole))
    return joined


def _tool(line: str, header: list[str]) -> str:
    if TIMING.match(line):
        return MLX_LM_BENCHMARK
    if header[:1] != ["model"] or "test" not in header:
        return ""
    if "size" in header and "backend" in header and "t/s" in header:
        return LLAMA_BENCH
    return LLAMA_BENCHY if "ttfr (ms)" in header else ""


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []


def _read_llama_bench(reading: Reading, table: _Table) -> None:
    run = reading.start_run("\n".join(table.raw) + "\n", table.command)
    artifact = _option(table.command, "--model", "-m")
    for number, line in table.lines:
        row = dict(zip(table.header, _cells(line), strict=False))
        test, figure = LLAMA_TEST.fullmatch(row.get("test", "")), FIGURE.fullmatch(row.get("t/s", ""))
        if len(_cells(line)) != len(table.header) or test is None or figure is None or not row["test"]:
            reading.problem(number, "this is no row of llama-bench's table above it", REPAIR)
            continue
        prompt, generation = int(test["prompt"] or 0), int(test["generation"] or 0)
        kind = Metric.PREFILL_AND_DECODE if prompt and generation else Metric.PREFILL if prompt else Metric.DECODE
        model, quantization = model_and_quantization(artifact) if artifact else model_and_type(row["model"])
        version = f"b{table.build[1]}" if table.build[1] else ""
        reading.add(
            number,
            run,
            kind,
            float(figure[1]),
            chip=table.chip,
            deviation=_deviation(figure),
            backend="llama.cpp",
            backend_version=version,
            backend_commit=table.build[0],
            client=LLAMA_BENCH,
            client_version=version,
            model=model,
            quantization=quantization,
            artifact=artifact,
            artifact_bytes=_scaled(row.get("size", ""), BYTES),
            prompt_tokens=prompt,
            generation_tokens=generation,
            depth=int(test["depth"] or 0),
            repetitions=repetitions_of(table.command) if table.command else 0,
            tool_fields=_llama_fields(row),
        )


def _llama_fields(row: dict[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "model_type": row["model"],
        "model_size": _scaled(row.get("size", ""), BYTES),
        "model_n_params": _scaled(row.get("params", ""), COUNTS),
        "backends": row["backend"],
    }
    for name, value in row.items():
        if name not in ("model", "size", "params", "backend", "test", "t/s"):
            fields[SHORT_NAMES.get(name, name)] = int(value) if value.lstrip("-").isdigit() else value
    return fields


def _read_benchy(reading: Reading, table: _Table) -> None:
    run = reading.start_run("\n".join(table.raw) + "\n", table.command, table.server_command)
    version = re.search(r"llama-benchy@v?([\w.]+)", table.command)
    served = _option(table.server_command, "--model", "-m", "serve", "--model-path")
    for number, line in table.lines:
        row = dict(zip(table.header, _cells(line), strict=False))
        test = BENCHY_TEST.fullmatch(row.get("test", ""))
        if len(_cells(line)) != len(table.header) or test is None:
            reading.problem(number, "this is no row of llama-benchy's table above it", REPAIR)
            continue
        columns = test_columns(test) | {
            "chip": table.chip,
            "client": LLAMA_BENCHY,
            "client_version": version[1] if version else "",
            "backend": next((name for word, name in SERVERS.items() if word in table.server_command), ""),
            "model": row["model"].rsplit("/", 1)[-1].lower(),
            "quantization": model_and_quantization(served)[1] if served else "",
            "artifact": served,
            "deviation_kind": DeviationKind.POPULATION,
            "repetitions": int(_option(table.command, "--runs") or 0),
            "tool_fields": {"model": row["model"], "max_concurrency": 2 if "t/s (req)" in table.header else 1},
        }
        for name, value in row.items():
            if name in BENCHY_COLUMNS and value:
                _add_benchy_figure(reading, number, run, test, name, value, columns)


def _add_benchy_figure(
    reading: Reading, number: int, run: Any, test: re.Match[str], name: str, value: str, columns: dict[str, Any]
) -> None:
    figure = FIGURE.fullmatch(value)
    if figure is None:
        reading.problem(number, f"'{value}' under '{name}' is no figure", REPAIR)
        return
    kind = BENCHY_COLUMNS[name][0 if test["kind"].endswith("pp") else 1]
    kind = BENCHY_CONTEXT[kind] if test["kind"].startswith("ctx") else kind
    reading.add(number, run, kind, float(figure[1]), **columns, deviation=_deviation(figure))


def _read_mlx(reading: Reading, table: _Table) -> None:
    run = reading.start_run("\n".join(table.raw) + "\n", table.command)
    timing = TIMING.match(table.raw[0])
    assert timing is not None
    trials: list[re.Match[str]] = []
    for number, line in table.lines:
        found = TRIAL.match(line)
        if found is None:
            reading.problem(number, "this is no line of mlx_lm benchmark", REPAIR)
        else:
            trials.append(found)
    averages = next((found for found in trials if found["what"] == "Averages"), None)
    trials = [found for found in trials if found["what"] != "Averages"]
    if averages is None:
        reading.problem(
            table.first_line, "mlx_lm benchmark ended without its averages", "measure again: a run is cut off"
        )
        return
    artifact = _option(table.command, "--model").removeprefix("./")
    model, quantization = model_and_quantization(artifact)
    columns: dict[str, Any] = {
        "backend": "mlx-lm",
        "client": MLX_LM_BENCHMARK,
        "model": model,
        "quantization": quantization,
        "artifact": artifact,
        "concurrency": int(timing[3]),
        "repetitions": len(trials),
        "tool_fields": mlx_fields(trials, averages),
    }
    for kind, name, tokens in ((Metric.PREFILL, "pp", timing[1]), (Metric.DECODE, "tg", timing[2])):
        asked = {"prompt_tokens" if name == "pp" else "generation_tokens": int(tokens)}
        samples = tuple(float(found[name]) for found in trials)
        reading.add(table.first_line, run, kind, float(averages[name]), **(columns | asked), samples=samples)


def mlx_fields_of(text: str) -> dict[str, Any]:
    """`mlx_fields` of all that the tool printed; empty where it did not come to its averages."""
    found = [match for line in text.splitlines() if (match := TRIAL.match(line))]
    averages = next((match for match in found if match["what"] == "Averages"), None)
    return mlx_fields([match for match in found if match is not averages], averages) if averages else {}


def mlx_fields(trials: list[re.Match[str]], averages: re.Match[str]) -> dict[str, Any]:
    """What `mlx_lm benchmark` prints beside the speeds; memory in GB, times in seconds."""
    fields: dict[str, Any] = {
        "peak_memory_gb": [float(found["memory"]) for found in trials],
        "average_peak_memory_gb": float(averages["memory"]),
    }
    seconds = [float(found["seconds"]) for found in trials if found["seconds"]]
    return fields | ({"total_time_seconds": seconds} if seconds else {})


def repetitions_of(command: str) -> int:
    """llama-bench's -r, or its default of 5 (`llama-bench --help`)."""
    told = _option(command, "-r", "--repetitions")
    return int(told) if told.isdigit() else 5


def _option(command: str, *names: str) -> str:
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    return next((value for name, value in itertools.pairwise(words) if name in names), "")


def _scaled(text: str, units: dict[str, int]) -> int | None:
    value, _, unit = text.partition(" ")
    try:
        return round(float(value) * units[unit])
    except (ValueError, KeyError):
        return None


def _deviation(figure: re.Match[str]) -> float | None:
    return float(figure[2]) if figure[2] and figure[2] != "nan" else None


_READERS = {LLAMA_BENCH: _read_llama_bench, LLAMA_BENCHY: _read_benchy, MLX_LM_BENCHMARK: _read_mlx}
