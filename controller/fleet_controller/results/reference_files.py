"""Reading the reference data that ships with fleet: published figures, or what `fleet results export` wrote."""

import csv
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fleet_controller.results.columns import DeviationKind, Metric, Result, Run, Source
from fleet_controller.results.importing.model import FileContext, ImportFailure, Reading
from fleet_controller.results.importing.own import is_own_row, read_own_rows
from fleet_controller.results.importing.text import repetitions_of
from fleet_controller.results.tools import LLAMA_BENCH, LLAMA_BENCHY, MLX_LM_BENCHMARK

# In the notes' table -> as the catalog names it.
QUANTIZATIONS = {"MLX-4bit": "4bit"}
BENCHY_FIGURES = {
    "ttfr_ms": Metric.TIME_TO_FIRST_RESPONSE,
    "est_ppt_ms": Metric.ESTIMATED_PREFILL_TIME,
    "e2e_ttft_ms": Metric.TIME_TO_FIRST_TOKEN,
    "peak_tps": Metric.PEAK_DECODE,
}


def load_reference(files: Iterable[Path], prefix: str = "reference") -> tuple[list[Result], list[Run]]:
    """All rows of the files. A file is a table of published figures, or what `fleet results export` wrote."""
    results: list[Result] = []
    runs: list[Run] = []
    for path in files:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        if rows and is_own_row(rows[0]):
            found, found_runs = _own(path, rows), list[Run]()
        else:
            found, found_runs = _published(rows)
        results += found
        runs += found_runs
    numbers = {run_id: f"{prefix}-{number}" for number, run_id in enumerate(_run_ids(results), start=1)}
    known = {run.run_id for run in runs}
    runs += [Run(run_id=run_id) for run_id in numbers if run_id not in known]
    return (
        [result.model_copy(update={"run_id": numbers[result.run_id]}) for result in results],
        [run.model_copy(update={"run_id": numbers[run.run_id]}) for run in runs],
    )


def _run_ids(results: Iterable[Result]) -> list[str]:
    return list(dict.fromkeys(result.run_id for result in results))


def _own(path: Path, rows: list[dict[str, str]]) -> list[Result]:
    reading = Reading(FileContext(path.name), "")
    read_own_rows(reading, enumerate(rows, start=2))
    if reading.problems:
        raise ImportFailure(reading.problems)
    return [result.model_copy(update={"source": Source.REFERENCE}) for result in reading.results]


def _published(rows: list[dict[str, str]]) -> tuple[list[Result], list[Run]]:
    runs: dict[str, Run] = {}
    results: list[Result] = []
    trials: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        extra = json.loads(row["extra"])
        command = str(extra.get("cmd") or extra["bench"])
        server = str(extra.get("server_cmd", "")).removeprefix("$ ")
        run_id = "\n".join((row["host"], row["backend_version"], command, server))
        if str(extra.get("record", "")).startswith("Trial"):
            trials.setdefault((run_id, row["test"]), []).append((float(row["tps"]), extra["peak_memory_gb"]))
            continue
        runs.setdefault(run_id, Run(run_id=run_id, host=row["host"], command=command, server_command=server))
        results += _figures(row, extra, run_id, command, trials.get((run_id, row["test"]), []))
    return results, list(runs.values())


def _figures(
    row: Mapping[str, str], extra: Mapping[str, Any], run_id: str, command: str, trials: list[tuple[float, float]]
) -> list[Result]:
    """The row's own figure, and those that llama-benchy printed beside it."""
    kind = Metric(row["test"])
    columns = _columns(row, extra, run_id) | _tool_columns(row, extra, command, trials)
    deviation = float(row["tps_std"]) if row["tps_std"] else None
    found = [Result(**columns, test_kind=kind, mean=float(row["tps"]), deviation=deviation)]
    for name, other in BENCHY_FIGURES.items():
        if name in extra:
            mean, deviation = (float(part) for part in extra[name].split(" ± "))
            found.append(Result(**columns, test_kind=other, mean=mean, deviation=deviation))
    return found


def _columns(row: Mapping[str, str], extra: Mapping[str, Any], run_id: str) -> dict[str, Any]:
    version, _, commit = row["backend_version"].partition(" ")
    version, commit = (commit, commit) if version == "commit" else (version, commit)
    tokens = int(row["n_tokens"])
    source = row["source"].rpartition(":")[2]
    return {
        "run_id": run_id,
        "source": Source.REFERENCE,
        "provenance": f"{source}:{extra['line']}",
        "host": row["host"],
        "chip": row["chip"],
        "backend": row["backend"],
        "backend_version": version,
        "backend_commit": commit,
        "model": row["model"].lower(),
        "quantization": QUANTIZATIONS.get(row["quant"], row["quant"]),
        "artifact": str(extra.get("gguf", "")),
        "artifact_bytes": int(row["model_bytes"]) if row["model_bytes"] else None,
        "prompt_tokens": tokens if row["test"] == "pp" else 0,
        "generation_tokens": tokens if row["test"] == "tg" else 0,
        "depth": int(row["depth"]),
    }


def _tool_columns(
    row: Mapping[str, str], extra: Mapping[str, Any], command: str, trials: list[tuple[float, float]]
) -> dict[str, Any]:
    if extra.get("tool") == LLAMA_BENCHY:
        version, model = re.search(r"@v([\w.]+)", command), re.search(r"--model (\S+)", command)
        return {
            "client": LLAMA_BENCHY,
            "client_version": version[1] if version else "",
            "flags": str(extra.get("speculative", "")),
            "deviation_kind": DeviationKind.POPULATION,
            "repetitions": int(row["runs"]),
            "tool_fields": {"model": model[1] if model else row["model"], "max_concurrency": 1},
        }
    if trials:
        return {
            "client": MLX_LM_BENCHMARK,
            "client_version": row["backend_version"],
            # The notes' table says how deep the context is that decode goes on from; all other tools call that depth 0.
            "depth": 0,
            "repetitions": len(trials),
            "samples": tuple(speed for speed, _ in trials),
            "tool_fields": {
                "peak_memory_gb": [memory for _, memory in trials],
                "average_peak_memory_gb": extra["peak_memory_gb"],
            },
        }
    size = {"n_gpu_layers": extra["ngl"]} if "ngl" in extra else {"n_threads": extra["threads"]}
    return {
        "client": LLAMA_BENCH,
        "client_version": row["backend_version"].partition(" ")[0],
        "repetitions": repetitions_of(command),
        "tool_fields": {
            "model_type": extra["model_label"],
            "model_size": int(row["model_bytes"]),
            "model_n_params": int(row["params"]),
            "backends": extra["llama_backend"],
            **size,
        },
    }
