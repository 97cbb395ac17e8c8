"""The columns of a result, declared once: what was measured on what, how it came out, and where it comes from.

`Fingerprint` holds the columns that make two rows comparable: rows agree in all of them, or their figures are never
averaged or compared as equals. `Result` adds the rest of a row; `Run` and `DeviceSample` are tables of their own, since
one run gives many rows.
"""

import hashlib
import json
from enum import StrEnum
from typing import Any, get_args

from pydantic import Field

from fleet_controller.domain.base import Frozen

FINGERPRINT_HEX_DIGITS = 16


class Source(StrEnum):
    """Where a row comes from: our own benches, tables that ship with fleet, or files that somebody imported."""

    MEASURED = "measured"
    REFERENCE = "reference"
    IMPORTED = "imported"


class Status(StrEnum):
    """A contaminated cell has no mean: `cause` says what disturbed every attempt."""

    MEASURED = "measured"
    CONTAMINATED = "contaminated"


class DeviationKind(StrEnum):
    """llama-bench divides by n - 1, llama-benchy (numpy.std) by n."""

    SAMPLE = "sample"
    POPULATION = "population"


class Metric(StrEnum):
    """What a figure says. The *_req kinds are per request where several run at once, the others over all of them."""

    PREFILL = "pp"  # tokens/s
    DECODE = "tg"  # tokens/s
    PREFILL_AND_DECODE = "pg"  # tokens/s, llama-bench -pg
    TIME_TO_FIRST_TOKEN = "ttft"  # ms
    ENERGY = "energy"  # J per generated token
    TIME_TO_FIRST_RESPONSE = "ttfr"  # ms, llama-benchy
    ESTIMATED_PREFILL_TIME = "est_ppt"  # ms, llama-benchy
    PEAK_DECODE = "peak"  # tokens/s in the best second, llama-benchy
    PREFILL_PER_REQUEST = "pp_req"
    DECODE_PER_REQUEST = "tg_req"
    PEAK_PER_REQUEST = "peak_req"
    CONTEXT_PREFILL = "ctx_pp"
    CONTEXT_DECODE = "ctx_tg"
    CONTEXT_PREFILL_PER_REQUEST = "ctx_pp_req"
    CONTEXT_DECODE_PER_REQUEST = "ctx_tg_req"
    CONTEXT_PEAK = "ctx_peak"
    CONTEXT_PEAK_PER_REQUEST = "ctx_peak_req"
    CONTEXT_TIME_TO_FIRST_RESPONSE = "ctx_ttfr"  # ms
    CONTEXT_ESTIMATED_PREFILL_TIME = "ctx_est_ppt"  # ms
    CONTEXT_TIME_TO_FIRST_TOKEN = "ctx_ttft"  # ms
    TIME_PER_OUTPUT_TOKEN = "tpot"  # ms
    INTER_TOKEN_LATENCY = "itl"  # ms
    REQUEST_LATENCY = "latency"  # ms
    TOTAL_THROUGHPUT = "total"  # tokens/s, prompt and generated together
    REQUEST_THROUGHPUT = "requests"  # requests/s


MILLISECONDS, TOKENS_PER_SECOND, JOULES_PER_TOKEN, REQUESTS_PER_SECOND = "ms", "t/s", "J/token", "req/s"
_UNITS = {
    Metric.TIME_TO_FIRST_TOKEN: MILLISECONDS,
    Metric.TIME_TO_FIRST_RESPONSE: MILLISECONDS,
    Metric.ESTIMATED_PREFILL_TIME: MILLISECONDS,
    Metric.CONTEXT_TIME_TO_FIRST_RESPONSE: MILLISECONDS,
    Metric.CONTEXT_ESTIMATED_PREFILL_TIME: MILLISECONDS,
    Metric.CONTEXT_TIME_TO_FIRST_TOKEN: MILLISECONDS,
    Metric.TIME_PER_OUTPUT_TOKEN: MILLISECONDS,
    Metric.INTER_TOKEN_LATENCY: MILLISECONDS,
    Metric.REQUEST_LATENCY: MILLISECONDS,
    Metric.ENERGY: JOULES_PER_TOKEN,
    Metric.REQUEST_THROUGHPUT: REQUESTS_PER_SECOND,
}


def unit_of(kind: Metric) -> str:
    return _UNITS.get(kind, TOKENS_PER_SECOND)


def lower_is_better(kind: Metric) -> bool:
    return unit_of(kind) in (MILLISECONDS, JOULES_PER_TOKEN)


class Fingerprint(Frozen):
    """What makes rows comparable. Empty or None means unknown, which is not equal to anything known."""

    host: str
    chip: str = ""  # "NVIDIA GeForce RTX 4090", "Apple M4"; a CPU's model where nothing else computes
    device_count: int = 1
    driver_version: str = ""
    runtime_version: str = ""  # CUDA's or macOS's
    os_name: str = ""
    power_limit_watts: float | None = None
    persistence_mode: bool | None = None
    backend: str = ""
    backend_version: str = ""  # as fleet pins it: "b8396", "0.5.8"
    backend_commit: str = ""  # as the tool says it, where the version does not say it
    flags: str = ""  # what the engine was started with and that changes speed: one shell-quoted text, no paths or ports
    model: str = ""
    quantization: str = ""
    artifact_sha256: str = ""
    artifact_bytes: int | None = None
    suite: str = ""
    client: str = ""  # "llama-bench", "mlx_lm.benchmark", "llama-benchy", "vllm-bench", "sglang-bench"
    client_version: str = ""
    test_kind: Metric
    prompt_tokens: int = 0  # of the test; 0 in a pure decode test
    generation_tokens: int = 0  # of the test; 0 in a pure prefill test
    depth: int = 0  # tokens in the context before the test
    concurrency: int = 1
    kv_type: str = ""  # "f16", "q8_0/q4_0" (keys/values); empty = the backend's own choice

    @property
    def fingerprint_id(self) -> str:
        """16 hex digits of all columns that say something; a column added later changes no id of older rows."""
        said = {name: value for name in FINGERPRINT_COLUMNS if (value := getattr(self, name)) not in (None, "")}
        text = json.dumps(said, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_HEX_DIGITS]

    @property
    def test(self) -> str:
        """As the tools name tests: "pp1024", "tg64 @ d8192", "pp512+tg128", "tg32 @ d8192 (c2)"."""
        return test_name(self.test_kind, self.prompt_tokens, self.generation_tokens, self.depth, self.concurrency)

    @property
    def unit(self) -> str:
        return unit_of(self.test_kind)


FINGERPRINT_COLUMNS = tuple(Fingerprint.model_fields)


def test_name(kind: Metric, prompt_tokens: int, generation_tokens: int, depth: int = 0, concurrency: int = 1) -> str:
    if kind is Metric.PREFILL_AND_DECODE:
        name = f"pp{prompt_tokens}+tg{generation_tokens}"
    else:
        name = f"{kind.value}{generation_tokens or prompt_tokens or ''}"
    if depth:
        name += f" @ d{depth}"
    return name if concurrency == 1 else f"{name} (c{concurrency})"


class Result(Fingerprint):
    """One figure of one bench run on one host, in the unit of its kind.

    `samples` are the single repetitions, `deviation` is theirs (see DeviationKind), None where the tool tells none.
    `repetitions` is 0 where nobody said how many there were. `tool_fields` is what the tool's own table shows beside
    the figure (llama-bench: model_type, model_n_params, backends, n_gpu_layers, n_threads ...).
    """

    run_id: str
    job_id: str = ""
    lease_id: str = ""
    source: Source = Source.MEASURED
    provenance: str = ""  # of a reference or imported row: file and line, or where it was published
    status: Status = Status.MEASURED
    cause: str = ""
    attempt: int = 1
    artifact: str = ""  # file, folder or repository, as given to the tool
    repetitions: int = 0
    mean: float | None = None
    deviation: float | None = None
    deviation_kind: DeviationKind = DeviationKind.SAMPLE
    confidence_low: float | None = None  # 95 % of the mean; filled by save_results where it follows from the rest
    confidence_high: float | None = None
    samples: tuple[float, ...] = ()
    tool_fields: dict[str, Any] = Field(default_factory=dict)
    started_unix_ms: int = 0
    finished_unix_ms: int = 0

    @property
    def result_key(self) -> str:
        """Two rows with one key are one result: a resent run, and a file imported twice under any name, add nothing."""
        values = self.model_dump(mode="json", exclude={"confidence_low", "confidence_high", "provenance"})
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class Run(Frozen):
    """One start of a tool: its words as they were, kept once for all rows that came of it."""

    run_id: str
    host: str = ""
    job_id: str = ""
    lease_id: str = ""
    command: str = ""  # shell-quoted, as it can be repeated
    server_command: str = ""  # of the server that was measured over HTTP
    stdout: str = ""
    stderr: str = ""
    details: dict[str, Any] = Field(default_factory=dict)  # attempts, warm-up times, facts of the host
    started_unix_ms: int = 0
    finished_unix_ms: int = 0


class DeviceSample(Frozen):
    """One look at one device while a run went on, once a second. None means that the device does not tell."""

    run_id: str
    attempt: int = 1
    device_index: int = 0
    unix_ms: int
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None
    utilization_percent: float | None = None
    memory_used_bytes: int | None = None
    throttle_reasons: str = ""  # comma-separated; empty = none
    foreign_processes: str = ""  # "alice:python:1234", comma-separated; empty = none


def sql_types(model: type[Frozen]) -> dict[str, type]:
    """Column name -> int, float or str; lists and objects are kept as JSON text."""
    return {name: _sql_type(field.annotation) for name, field in model.model_fields.items()}


def _sql_type(annotation: Any) -> type:
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not type(None)]
    if len(kinds) == 1 and kinds[0] in (bool, int):
        return int
    return float if kinds == [float] else str


RESULT_COLUMNS: dict[str, type] = sql_types(Result)
