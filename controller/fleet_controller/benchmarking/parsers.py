"""What each tool printed, as rows. An exit status of 0 proves nothing: `demand` names every row that is missing.

The outputs are described in facts of the tools' versions pinned here; samples of them are in tests/.../data.
"""

import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field

from fleet_controller.benchmarking.suites import Part
from fleet_controller.domain.base import Frozen
from fleet_controller.results.columns import DeviationKind, Metric
from fleet_controller.results.importing.text import mlx_fields_of
from fleet_controller.results.tools import LLAMA_BENCH_FIELDS as TABLE_FIELDS

_NUMBER = r"([0-9.]+(?:[eE][+-]?[0-9]+)?)"
_TRIAL = re.compile(rf"^Trial (\d+):\s+prompt_tps={_NUMBER}, generation_tps={_NUMBER}", re.MULTILINE)
_AVERAGES = re.compile(rf"^Averages:\s+prompt_tps={_NUMBER}, generation_tps={_NUMBER}", re.MULTILINE)
_SIZES = re.compile(r"prompt_tokens=(\d+), generation_tokens=(\d+), batch_size=(\d+)")
LLAMA_BENCH_FIELDS = (*TABLE_FIELDS, "build_commit", "build_number", "gpu_info", "cpu_info")


class BenchOutputError(Exception):
    """A tool's output is not what was asked for."""

    def __init__(self, code: str, message: str, remedy: str = "see the job's log; run the bench again") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy


class Row(Frozen):
    """One figure in the unit of its kind; `samples` are its repetitions, where the tool tells them."""

    kind: Metric
    prompt_tokens: int = 0
    generation_tokens: int = 0
    depth: int = 0
    concurrency: int = 1
    mean: float
    deviation: float | None = None
    deviation_kind: DeviationKind = DeviationKind.SAMPLE
    samples: tuple[float, ...] = ()
    repetitions: int = 0
    tool_fields: dict[str, Any] = Field(default_factory=dict)

    @property
    def test(self) -> tuple[Metric, int, int, int]:
        return self.kind, self.generation_tokens or self.prompt_tokens, self.depth, self.concurrency


def demand(rows: Sequence[Row], part: Part, tool: str) -> tuple[Row, ...]:
    """The rows; raises BenchOutputError "bench-incomplete" where one that was asked for is not there."""
    wanted = [
        (kind, tokens, depth, users)
        for depth in part.depths
        for users in part.concurrency
        for kind, tokens in ((Metric.PREFILL, part.prompt_tokens), (Metric.DECODE, part.generation_tokens))
        if tokens
    ]
    found = {row.test for row in rows}
    missing = [f"{kind.value}{tokens} @ d{depth} (c{users})" for kind, tokens, depth, users in wanted
               if (kind, tokens, depth, users) not in found]  # fmt: skip
    if missing:
        raise BenchOutputError("bench-incomplete", f"{tool} ended without these results: {', '.join(missing)}")
    broken = [row for row in rows if not row.mean > 0]
    if broken:
        raise BenchOutputError("bench-unreadable", f"{tool} tells a speed of {broken[0].mean:g} for {broken[0].kind}")
    return tuple(rows)


def llama_bench(result: Mapping[str, Any], part: Part, discarded: int = 0) -> tuple[Row, ...]:
    """Rows of `llama-bench -o json` or jsonl; the first `discarded` repetitions of each test were warm-up."""
    text = str(result.get("stdout", "")).strip()
    try:
        documents = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
        rows = [_llama_bench_row(document, discarded) for document in documents]
    except (ValueError, KeyError, TypeError) as error:
        raise BenchOutputError(
            "bench-unreadable", f"llama-bench printed something else than its JSON: {error}"
        ) from None
    return demand([row for row in rows if row is not None], part, "llama-bench")


def _llama_bench_row(document: Mapping[str, Any], discarded: int) -> Row | None:
    prompt, generation = int(document["n_prompt"]), int(document["n_gen"])
    if prompt and generation:
        return None  # -pg: both in one test
    samples = tuple(float(value) for value in document.get("samples_ts", ()))[discarded:]
    mean = statistics.fmean(samples) if discarded and samples else float(document["avg_ts"])
    deviation = statistics.stdev(samples) if discarded and len(samples) > 1 else document.get("stddev_ts")
    return Row(
        kind=Metric.PREFILL if prompt else Metric.DECODE,
        prompt_tokens=prompt,
        generation_tokens=generation,
        depth=int(document.get("n_depth", 0)),
        mean=mean,
        deviation=None if deviation is None else float(deviation),
        samples=samples,
        repetitions=len(samples),
        tool_fields={name: document[name] for name in LLAMA_BENCH_FIELDS if name in document},
    )


def mlx_lm_benchmark(result: Mapping[str, Any], part: Part, discarded: int = 0) -> tuple[Row, ...]:
    """Rows of `mlx_lm.benchmark`: text only, "Trial N:" with two spaces after it, and averages without a deviation."""
    text = str(result.get("stdout", ""))
    sizes, averages, trials = _SIZES.search(text), _AVERAGES.search(text), _TRIAL.findall(text)
    if sizes is None or averages is None:
        raise BenchOutputError("bench-incomplete", "mlx_lm.benchmark ended without its averages")
    if len(trials) != part.repetitions:
        message = f"mlx_lm.benchmark ended after {len(trials)} of {part.repetitions} trials"
        raise BenchOutputError("bench-incomplete", message)
    prompt, generation, batch = (int(size) for size in sizes.groups())
    rows = []
    for position, (kind, average) in enumerate(((Metric.PREFILL, averages[1]), (Metric.DECODE, averages[2]))):
        samples = tuple(float(trial[position + 1]) for trial in trials)
        rows.append(
            Row(
                kind=kind,
                prompt_tokens=prompt if kind is Metric.PREFILL else 0,
                generation_tokens=generation if kind is Metric.DECODE else 0,
                concurrency=batch,
                mean=float(average),
                deviation=statistics.stdev(samples) if len(samples) > 1 else None,
                samples=samples,
                repetitions=len(samples),
                tool_fields=mlx_fields_of(text),
            )
        )
    return demand(rows, part, "mlx_lm.benchmark")


_BENCHY_METRICS = (
    ("pp_throughput", Metric.PREFILL),
    ("tg_throughput", Metric.DECODE),
    ("e2e_ttft", Metric.TIME_TO_FIRST_TOKEN),
    ("ttfr", Metric.TIME_TO_FIRST_RESPONSE),
    ("est_ppt", Metric.ESTIMATED_PREFILL_TIME),
    ("peak_throughput", Metric.PEAK_DECODE),
    ("pp_req_throughput", Metric.PREFILL_PER_REQUEST),
    ("tg_req_throughput", Metric.DECODE_PER_REQUEST),
    ("peak_req_throughput", Metric.PEAK_PER_REQUEST),
)
_CONTEXT_METRICS = {
    Metric.PREFILL: Metric.CONTEXT_PREFILL,
    Metric.DECODE: Metric.CONTEXT_DECODE,
    Metric.PREFILL_PER_REQUEST: Metric.CONTEXT_PREFILL_PER_REQUEST,
    Metric.DECODE_PER_REQUEST: Metric.CONTEXT_DECODE_PER_REQUEST,
    Metric.PEAK_DECODE: Metric.CONTEXT_PEAK,
    Metric.PEAK_PER_REQUEST: Metric.CONTEXT_PEAK_PER_REQUEST,
}
# Of the prompt alone; the others are of what is generated.
_PROMPT_METRICS = frozenset(
    {Metric.PREFILL, Metric.PREFILL_PER_REQUEST, Metric.TIME_TO_FIRST_TOKEN, Metric.TIME_TO_FIRST_RESPONSE,
     Metric.ESTIMATED_PREFILL_TIME}
)  # fmt: skip


def llama_benchy(result: Mapping[str, Any], part: Part, discarded: int = 0) -> tuple[Row, ...]:
    """Rows of `llama-benchy --format json`. Two ways of losing them, both with exit status 0, are seen here: a latency
    that is larger than the reply takes every pp row away, and a server that answers HTTP 400 leaves no file at all.
    """
    text = str(result.get("files", {}).get("result", ""))
    said = str(result.get("stdout", ""))
    if not text:
        refused = re.search(r"HTTP \d+: .*", said)
        why = refused[0][:300] if refused else "No results collected" if "No results" in said else "no result file"
        raise BenchOutputError("bench-incomplete", f"llama-benchy ended without results: {why}")
    try:
        document = json.loads(text)
        shown = {name: document[name] for name in ("model", "max_concurrency") if name in document}
        rows = [row for entry in document["benchmarks"] for row in _benchy_rows(entry, shown)]
    except (ValueError, KeyError, TypeError) as error:
        raise BenchOutputError("bench-unreadable", f"llama-benchy's result is not its JSON: {error}") from None
    _demand_whole_replies(str(result.get("files", {}).get("progress", "")), part)
    kept = demand(rows, part, "llama-benchy")
    for row in kept:  # a run whose tokens all arrived in one piece has no decode time, and is left out silently
        if row.kind in (Metric.PREFILL, Metric.DECODE) and len(row.samples) < part.repetitions:
            message = f"llama-benchy counts {len(row.samples)} of {part.repetitions} runs of {row.kind.value}"
            raise BenchOutputError(
                "bench-incomplete",
                f"{message} at depth {row.depth}: the other replies arrived in one piece",
                "the model is faster than llama-benchy can tell its tokens apart: ask for more, with --generate",
            )
    return kept


# Where a server tells the ids of tokens, llama-benchy counts those of chunks with text: a few have none.
WHOLE_REPLY = 0.9


def _demand_whole_replies(progress: str, part: Part) -> None:
    """Raises BenchOutputError where a request failed, or the model stopped before it had generated all its tokens."""
    depths: dict[int, int] = {}
    for line in progress.splitlines():
        try:
            event = json.loads(line)
            number = int(event.get("request_id", -1))
            if event["type"] == "request_start":
                depths[number] = int(event["context_size"])
            if event["type"] != "request_end":
                continue
            error, tokens = str(event.get("error") or ""), int(event["total_tokens"])
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        where = f"at depth {depths.get(number, 0)}"
        if error:
            raise BenchOutputError("bench-incomplete", f"llama-benchy: a request {where} failed: {error[:300]}")
        if tokens < part.generation_tokens * WHOLE_REPLY:
            message = f"llama-benchy: the model stopped after {tokens} of {part.generation_tokens} tokens {where}"
            remedy = "its server does not take ignore_eos, so that such rows would not be comparable: ask for fewer"
            raise BenchOutputError("bench-incomplete", message, f"{remedy} with --generate")


def _benchy_rows(entry: Mapping[str, Any], shown: dict[str, Any]) -> Iterable[Row]:
    in_context = bool(entry.get("is_context_prefill_phase"))
    for name, metric in _BENCHY_METRICS:
        figure = entry.get(name)
        if not figure or figure.get("mean") is None:
            continue
        kind = _CONTEXT_METRICS.get(metric) if in_context else metric
        if kind is None:
            continue
        values = tuple(float(value) for value in figure.get("values") or ())
        yield Row(
            kind=kind,
            prompt_tokens=int(entry["prompt_size"]) if metric in _PROMPT_METRICS else 0,
            generation_tokens=0 if metric in _PROMPT_METRICS else int(entry["response_size"]),
            depth=int(entry["context_size"]),
            concurrency=int(entry.get("concurrency", 1)),
            mean=float(figure["mean"]),
            deviation=float(figure["std"]) if figure.get("std") is not None else None,
            deviation_kind=DeviationKind.POPULATION,
            samples=values,
            repetitions=len(values),
            tool_fields=shown,
        )


_SERVING_METRICS = (
    ("output_throughput", Metric.DECODE),
    ("mean_ttft_ms", Metric.TIME_TO_FIRST_TOKEN),
    ("mean_tpot_ms", Metric.TIME_PER_OUTPUT_TOKEN),
    ("mean_itl_ms", Metric.INTER_TOKEN_LATENCY),
    ("request_throughput", Metric.REQUEST_THROUGHPUT),
    ("total_token_throughput", Metric.TOTAL_THROUGHPUT),
    ("total_throughput", Metric.TOTAL_THROUGHPUT),
)


def vllm_bench(result: Mapping[str, Any], part: Part, discarded: int = 0) -> tuple[Row, ...]:
    """Rows of `vllm bench serve --save-result`. Failed requests are no result."""
    return _serving("vllm bench serve", result, part, lambda document: int(document.get("num_prompts", 0)))


def sglang_bench(result: Mapping[str, Any], part: Part, discarded: int = 0) -> tuple[Row, ...]:
    """Rows of `sglang.bench_serving --output-file`: one JSON object a line, the last is ours; it has no "failed"."""
    return _serving("sglang.bench_serving", result, part, lambda document: serving_requests(part))


def serving_requests(part: Part) -> int:
    """Requests of one run of a serving benchmark."""
    return part.repetitions * max(part.concurrency)


def _serving(
    tool: str, result: Mapping[str, Any], part: Part, expected: Callable[[Mapping[str, Any]], int]
) -> tuple[Row, ...]:
    lines = str(result.get("files", {}).get("result", "")).strip().splitlines()
    try:
        document: Mapping[str, Any] = json.loads(lines[-1])
        completed = int(document["completed"])
    except (IndexError, ValueError, KeyError, TypeError):
        raise BenchOutputError("bench-incomplete", f"{tool} ended without its result") from None
    wanted = expected(document) or serving_requests(part)
    if completed != wanted or int(document.get("failed") or 0):
        raise BenchOutputError("bench-incomplete", f"{tool}: {completed} of {wanted} requests were answered")
    _demand_generated(tool, document, completed * part.generation_tokens)
    rows = [
        Row(
            kind=kind,
            prompt_tokens=part.prompt_tokens if kind is Metric.TIME_TO_FIRST_TOKEN else 0,
            generation_tokens=0 if kind is Metric.TIME_TO_FIRST_TOKEN else part.generation_tokens,
            concurrency=max(part.concurrency),
            mean=float(document[name]),
            deviation=_deviation(document, name),
            deviation_kind=DeviationKind.POPULATION,
            repetitions=completed,
        )
        for name, kind in _SERVING_METRICS
        if document.get(name) is not None
    ]
    return demand(rows, part.model_copy(update={"prompt_tokens": 0}), tool)


def _demand_generated(tool: str, document: Mapping[str, Any], wanted: int) -> None:
    """Raises BenchOutputError where the replies were shorter than asked for, as the tool tells it."""
    generated = int(document.get("total_output_tokens") or wanted)
    if generated < wanted * WHOLE_REPLY:
        message = f"{tool}: {generated} of {wanted} tokens were generated"
        raise BenchOutputError("bench-incomplete", message, "the model stopped early: ask for fewer, with --generate")


def _deviation(document: Mapping[str, Any], name: str) -> float | None:
    found = document.get(name.replace("mean_", "std_", 1)) if name.startswith("mean_") else None
    return None if found is None else float(found)
