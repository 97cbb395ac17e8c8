"""llama-bench's own output: objects of `-o json` and `-o jsonl`, and rows of `-o csv`."""

from collections.abc import Iterable, Mapping
from typing import Any

from fleet_controller.results.columns import Metric
from fleet_controller.results.importing.model import BadLine, Reading, model_and_quantization, number, unix_ms
from fleet_controller.results.tools import LLAMA_BENCH, LLAMA_BENCH_FIELDS

REQUIRED = ("model_filename", "n_prompt", "n_gen", "avg_ts")
NUMBERS = frozenset(
    {"model_size", "model_n_params", "n_gpu_layers", "n_threads", "n_cpu_moe", "n_batch", "n_ubatch", "main_gpu"}
)


def is_llama_bench(entry: Mapping[str, Any]) -> bool:
    return "avg_ts" in entry and "n_prompt" in entry


def read_entries(reading: Reading, entries: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
    """(line, entry): one test each. Entries of one file are one run."""
    rows = list(entries)
    finished = max((unix_ms(str(entry.get("test_time", ""))) for _, entry in rows), default=0)
    run = reading.start_run(reading.text, finished_unix_ms=finished)
    for line, entry in rows:
        try:
            kind, columns = _columns(line, entry)
            reading.add(line, run, kind, number(entry, "avg_ts", line), **columns)
        except BadLine as bad:
            reading.problem(bad.line, bad.message, bad.remedy)


def _columns(line: int, entry: Mapping[str, Any]) -> tuple[Metric, dict[str, Any]]:
    absent = [name for name in REQUIRED if entry.get(name) in (None, "")]
    if absent:
        raise BadLine(
            line, f"no {', '.join(absent)} in this entry of llama-bench", "run llama-bench again, or remove it"
        )
    prompt, generation = int(number(entry, "n_prompt", line)), int(number(entry, "n_gen", line))
    kind = Metric.PREFILL_AND_DECODE if prompt and generation else Metric.PREFILL if prompt else Metric.DECODE
    model, quantization = model_and_quantization(str(entry["model_filename"]))
    build = str(entry.get("build_number", ""))
    keys, values = str(entry.get("type_k", "")), str(entry.get("type_v", ""))
    samples = tuple(float(sample) for sample in entry.get("samples_ts") or ())
    return kind, {
        "chip": str(entry.get("gpu_info") or entry.get("cpu_info") or ""),
        "backend": "llama.cpp",
        "backend_version": f"b{build}" if build.isdigit() else build,
        "backend_commit": str(entry.get("build_commit", "")),
        "model": model,
        "quantization": quantization,
        "artifact": str(entry["model_filename"]),
        "artifact_bytes": _whole(entry.get("model_size")),
        "client": LLAMA_BENCH,
        "client_version": f"b{build}" if build.isdigit() else build,
        "prompt_tokens": prompt,
        "generation_tokens": generation,
        "depth": _whole(entry.get("n_depth")) or 0,
        "kv_type": keys if keys == values else f"{keys}/{values}",
        "repetitions": len(samples),
        "deviation": number(entry, "stddev_ts", line) if "stddev_ts" in entry else None,
        "samples": samples,
        "tool_fields": {name: _field(name, entry[name]) for name in LLAMA_BENCH_FIELDS if name in entry},
        "finished_unix_ms": unix_ms(str(entry.get("test_time", ""))),
    }


def _whole(value: Any) -> int | None:
    return int(value) if str(value).lstrip("-").isdigit() else None


def _field(name: str, value: Any) -> Any:
    """CSV has every value as text; what is a number in JSON becomes one here as well."""
    return _whole(value) if name in NUMBERS and isinstance(value, str) else value
