"""`vllm bench serve --save-result` (one object) and `sglang.bench_serving --output-file` (one object a line)."""

from collections.abc import Mapping
from typing import Any

from fleet_controller.results.columns import DeviationKind, Metric
from fleet_controller.results.importing.model import BadLine, Reading, number, unix_ms
from fleet_controller.results.tools import SGLANG_BENCH, VLLM_BENCH

TIMES = {
    Metric.TIME_TO_FIRST_TOKEN: "ttft",
    Metric.TIME_PER_OUTPUT_TOKEN: "tpot",
    Metric.INTER_TOKEN_LATENCY: "itl",
    Metric.REQUEST_LATENCY: "e2e_latency",
}


def is_serving(entry: Any) -> bool:
    return isinstance(entry, dict) and "output_throughput" in entry and "mean_ttft_ms" in entry


def read_serving(reading: Reading, line: int, entry: Mapping[str, Any], text: str) -> None:
    """The figures of one measurement over HTTP. Requests that failed make its speeds meaningless: it is refused."""
    try:
        _refuse_failed(line, entry)
        columns = _columns(line, entry)
        run = reading.start_run(text, finished_unix_ms=unix_ms(str(entry.get("date", ""))))
        reading.add(line, run, Metric.DECODE, number(entry, "output_throughput", line), **columns)
        reading.add(line, run, Metric.REQUEST_THROUGHPUT, number(entry, "request_throughput", line), **columns)
        total = "total_token_throughput" if "total_token_throughput" in entry else "total_throughput"
        if total in entry:
            reading.add(line, run, Metric.TOTAL_THROUGHPUT, number(entry, total, line), **columns)
        for kind, stem in TIMES.items():
            if entry.get(f"mean_{stem}_ms") is not None:
                deviation = number(entry, f"std_{stem}_ms", line) if f"std_{stem}_ms" in entry else None
                spread = {
                    "deviation": deviation,
                    "deviation_kind": DeviationKind.POPULATION,
                    "repetitions": int(number(entry, "completed", line)),
                }
                reading.add(line, run, kind, number(entry, f"mean_{stem}_ms", line), **(columns | spread))
    except BadLine as bad:
        reading.problem(bad.line, bad.message, bad.remedy)


def _refuse_failed(line: int, entry: Mapping[str, Any]) -> None:
    wanted, completed = entry.get("num_prompts"), int(number(entry, "completed", line))
    failed = int(entry.get("failed") or 0) or (int(wanted) - completed if wanted else 0)
    if failed or not completed:
        raise BadLine(
            line, f"{failed} requests failed, {completed} were answered", "measure again: these speeds mean nothing"
        )


def _columns(line: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    completed = int(number(entry, "completed", line))
    server = entry.get("server_info") or {}
    sglang = "server_info" in entry or str(entry.get("backend", "")).startswith("sglang")
    prompt = entry.get("random_input_len") or round(number(entry, "total_input_tokens", line) / completed)
    generation = entry.get("random_output_len") or round(number(entry, "total_output_tokens", line) / completed)
    model = str(entry.get("model_id") or server.get("served_model_name") or server.get("model_path") or "")
    return {
        "client": SGLANG_BENCH if sglang else VLLM_BENCH,
        "backend": "sglang" if server else "",
        "backend_version": str(server.get("version") or ""),
        "model": model.rsplit("/", 1)[-1].lower(),
        "artifact": str(server.get("model_path") or entry.get("tokenizer_id") or ""),
        "prompt_tokens": int(prompt),
        "generation_tokens": int(generation),
        "concurrency": int(entry.get("max_concurrency") or entry.get("num_prompts") or completed),
        "tool_fields": {"requests": completed, "request_rate": str(entry.get("request_rate", ""))},
    }
