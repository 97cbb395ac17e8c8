"""llama-benchy's own output: the document of `--format json` and the rows of `--format csv`."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from fleet_controller.results.columns import DeviationKind, Metric
from fleet_controller.results.importing.model import BadLine, Reading, number, unix_ms
from fleet_controller.results.tools import BENCHY_CONTEXT, BENCHY_DECODE, BENCHY_PREFILL, LLAMA_BENCHY

# "pp2048", "tg32 @ d8192", "ctx_pp @ d256 (c2)"
TEST = re.compile(r"(?P<kind>ctx_pp|ctx_tg|pp|tg)(?P<tokens>\d*)(?: @ d(?P<depth>\d+))?(?: \(c(?P<concurrency>\d+)\))?")


def is_document(document: Any) -> bool:
    return isinstance(document, dict) and isinstance(document.get("benchmarks"), list)


def read_document(reading: Reading, document: Mapping[str, Any]) -> None:
    run = reading.start_run(reading.text, finished_unix_ms=unix_ms(str(document.get("timestamp", ""))))
    shared = {
        "client": LLAMA_BENCHY,
        "client_version": str(document.get("version", "")),
        "model": str(document.get("model", "")).rsplit("/", 1)[-1].lower(),
        "deviation_kind": DeviationKind.POPULATION,
        "tool_fields": {"model": document.get("model", ""), "max_concurrency": document.get("max_concurrency", 1)},
    }
    for index, bench in enumerate(document["benchmarks"], start=1):
        line = _line_of(reading.text, index)
        before = len(reading.results)
        for kind, key, tokens in _figures(bench):
            try:
                values = bench.get(key)
                if values is not None:
                    _add(reading, line, run, kind, values, shared | tokens)
            except BadLine as bad:
                reading.problem(bad.line, f"{key}: {bad.message}", bad.remedy)
        if len(reading.results) == before and not reading.problems:
            reading.problem(line, "this benchmark holds no figures", "run llama-benchy again, or remove it")


def _figures(bench: Mapping[str, Any]) -> Iterable[tuple[Metric, str, dict[str, Any]]]:
    context = bool(bench.get("is_context_prefill_phase"))
    shared = {"depth": int(bench.get("context_size") or 0), "concurrency": int(bench.get("concurrency") or 1)}
    for kinds, column, size in (
        (BENCHY_PREFILL, "prompt_tokens", "prompt_size"),
        (BENCHY_DECODE, "generation_tokens", "response_size"),
    ):
        for kind, (key, _) in kinds.items():
            tokens = {} if context else {column: int(bench.get(size) or 0)}
            yield (BENCHY_CONTEXT[kind] if context else kind), key, shared | tokens


def _add(
    reading: Reading, line: int, run: Any, kind: Metric, values: Mapping[str, Any], columns: dict[str, Any]
) -> None:
    samples = tuple(float(value) for value in values.get("values") or ())
    deviation = number(values, "std", line) if values.get("std") is not None else None
    extra = {"deviation": deviation, "samples": samples, "repetitions": len(samples)}
    reading.add(line, run, kind, number(values, "mean", line), **(columns | extra))


def _line_of(text: str, index: int) -> int:
    """The line of the n-th benchmark: each one says its concurrency once."""
    found = list(re.finditer(r'"concurrency"', text))
    return text.count("\n", 0, found[index - 1].start()) + 1 if index <= len(found) else 0


def read_rows(reading: Reading, rows: Iterable[tuple[int, Mapping[str, str]]]) -> None:
    """Rows of the CSV; it tells neither version nor repetitions."""
    run = reading.start_run(reading.text)
    for line, row in rows:
        test = TEST.fullmatch(row.get("test_name") or "")
        if test is None:
            reading.problem(
                line, f"'{row.get('test_name')}' is no test of llama-benchy", "repair or remove that line, then repeat"
            )
            continue
        for kind, stem in ((kind, names[1]) for kind, names in _kinds(test).items()):
            if row.get(f"{stem}_mean"):
                try:
                    _add_row(reading, line, run, kind, test, row, stem)
                except BadLine as bad:
                    reading.problem(bad.line, bad.message, bad.remedy)


def _kinds(test: re.Match[str]) -> dict[Metric, tuple[str, str]]:
    kinds = BENCHY_PREFILL if test["kind"].endswith("pp") else BENCHY_DECODE
    context = test["kind"].startswith("ctx")
    return {(BENCHY_CONTEXT[kind] if context else kind): names for kind, names in kinds.items()}


def _add_row(
    reading: Reading, line: int, run: Any, kind: Metric, test: re.Match[str], row: Mapping[str, str], stem: str
) -> None:
    columns = test_columns(test) | {
        "client": LLAMA_BENCHY,
        "model": row["model"].rsplit("/", 1)[-1].lower(),
        "deviation_kind": DeviationKind.POPULATION,
        "deviation": number(row, f"{stem}_std", line) if row.get(f"{stem}_std") else None,
        "tool_fields": {"model": row["model"], "max_concurrency": int(test["concurrency"] or 1)},
    }
    reading.add(line, run, kind, number(row, f"{stem}_mean", line), **columns)


def test_columns(test: re.Match[str]) -> dict[str, Any]:
    """Tokens, depth and concurrency that a test's name says."""
    tokens = int(test["tokens"] or 0)
    return {
        "prompt_tokens": tokens if test["kind"] == "pp" else 0,
        "generation_tokens": tokens if test["kind"] == "tg" else 0,
        "depth": int(test["depth"] or 0),
        "concurrency": int(test["concurrency"] or 1),
    }
