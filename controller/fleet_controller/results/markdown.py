"""Tables as the tools print them, byte for byte: one for each run, under a heading that says whose it is.

llama-bench: widths and columns of `markdown_printer` in tools/llama-bench/llama-bench.cpp. llama-benchy: tabulate's
"pipe" format, whose headers are at least two characters wider than their text. mlx_lm benchmark: its lines.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fleet_controller.results.columns import Metric, Result, Run
from fleet_controller.results.figures import figure, mean_and_deviation
from fleet_controller.results.tools import BENCHY_CONTEXT, LLAMA_BENCH, LLAMA_BENCHY, MLX_LM_BENCHMARK

TABULATE_HEADER_PADDING = 2
# Column -> printed name, width (left-aligned where negative) and the values that are llama-bench's defaults, in its
# order: it shows what differs from them. Seen in b11434's output; older builds print some of them narrower.
LLAMA_OPTIONS: tuple[tuple[str, str, int, tuple[Any, ...]], ...] = (
    ("n_cpu_moe", "n_cpu_moe", 10, (0,)),
    ("n_threads", "threads", 7, ()),
    ("cpu_mask", "cpu_mask", -10, ("0x0",)),
    ("cpu_strict", "cpu_strict", 10, (0,)),
    ("poll", "poll", 10, (50,)),
    ("n_batch", "n_batch", 7, (2048,)),
    ("n_ubatch", "n_ubatch", 8, (512,)),
    ("type_k", "type_k", 6, ("f16",)),
    ("type_v", "type_v", 6, ("f16",)),
    ("split_mode", "sm", 6, ("layer",)),
    ("main_gpu", "main_gpu", 10, (0,)),
    ("no_kv_offload", "nkvo", 13, (0,)),
    ("flash_attn", "fa", 3, (-1,)),
    ("devices", "dev", -12, ("auto",)),
    ("tensor_split", "ts", -12, ("0.00",)),
    ("tensor_buft_overrides", "ot", -21, ("none",)),
    ("use_mmap", "mmap", 4, (1,)),
    ("load_mode", "lm", 10, ("auto",)),
    ("lazy_mode", "lazy_mode", -10, ("auto",)),
    ("embeddings", "embd", 10, (0,)),
    ("no_op_offload", "nopo", 4, (0,)),
    ("no_host", "noh", 4, (0,)),
    ("repack", "rpk", 3, (1,)),
    ("fit_target", "fitt", 10, (0,)),
)
# Before --load-mode came, flash attention was off unless asked for.
OLDER_DEFAULTS: dict[str, tuple[Any, ...]] = {"flash_attn": (0, -1)}


# Ours, or printed by a tool outside its table.
_IN_NO_TABLE = (Metric.ENERGY,)


def markdown_of(results: Sequence[Result], runs: Iterable[Run]) -> str:
    """Every run of the rows with its heading, command and table; rows of a contaminated cell have no figure."""
    known = {run.run_id: run for run in runs}
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.mean is not None and result.test_kind not in _IN_NO_TABLE:
            groups.setdefault(result.run_id, []).append(result)
    return "\n".join(_section(rows, known.get(run_id)) for run_id, rows in groups.items())


def _section(rows: list[Result], run: Run | None) -> str:
    first = rows[0]
    source = f"{first.source.value} {first.provenance.rpartition(':')[0]}".strip()
    about = (first.host, first.chip, f"{first.backend} {first.backend_version}".strip(), source)
    lines = ["### " + " · ".join(part for part in about if part), ""]
    commands = [command for command in (run.server_command, run.command) if command] if run else []
    lines += [f"`$ {command}`" for command in commands] + ([""] if commands else [])
    return "\n".join(lines) + "\n" + TABLES.get(first.client, _plain_table)(rows)


def llama_bench_table(rows: Sequence[Result]) -> str:
    """As `llama-bench -o md`, the build's line included."""
    columns = _llama_columns(rows)
    lines = [
        "|" + "".join(f" {_padded(name, width)} |" for name, width, _ in columns),
        "|" + "".join(f" {'-' * (abs(width) - (width > 0))}{':' * (width > 0)} |" for _, width, _ in columns),
    ]
    for row in rows:
        lines.append("|" + "".join(f" {_padded(value(row), width)} |" for _, width, value in columns))
    first = rows[0]
    return "\n".join([*lines, "", f"build: {first.backend_commit} ({first.client_version.removeprefix('b')})", ""])


def _llama_columns(rows: Sequence[Result]) -> list[tuple[str, int, Callable[[Result], str]]]:
    fields = rows[0].tool_fields
    backends = str(fields.get("backends", ""))
    on_cpu = "CPU" in backends or "BLAS" in backends

    def field(name: str) -> Callable[[Result], str]:
        return lambda row: _llama_value(row.tool_fields.get(name))

    columns: list[tuple[str, int, Callable[[Result], str]]] = [
        ("model", -30, field("model_type")),
        ("size", 10, lambda row: _size(row.tool_fields.get("model_size"))),
        ("params", 10, lambda row: _parameters(row.tool_fields.get("model_n_params"))),
        ("backend", -10, field("backends")),
    ]
    if not on_cpu:
        columns.append(("ngl", 3, field("n_gpu_layers")))
    older = {} if "load_mode" in fields else OLDER_DEFAULTS
    for name, title, width, defaults in LLAMA_OPTIONS:
        usual = older.get(name, defaults)
        # How many threads are the default depends on the machine: they are shown where the CPU computes.
        if (
            on_cpu
            if name == "n_threads"
            else any(_number(row.tool_fields.get(name, usual[0])) not in usual for row in rows)
        ):
            columns.append((title, width, field(name)))
    return [*columns, ("test", 15, lambda row: row.test), ("t/s", 20, figure)]


def _padded(text: str, width: int) -> str:
    return text.ljust(-width) if width < 0 else text.rjust(width)


def _llama_value(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else "" if value is None else str(value)


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.lstrip("-").isdigit() else value


def _size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return ""
    return f"{size_bytes / 1024**2:.2f} MiB" if size_bytes < 1024**3 else f"{size_bytes / 1024**3:.2f} GiB"


def _parameters(count: int | None) -> str:
    if count is None:
        return ""
    return f"{count / 1e6:.2f} M" if count < 1_000_000_000 else f"{count / 1e9:.2f} B"


def llama_benchy_table(rows: Sequence[Result]) -> str:
    """As `llama-benchy --format md`."""
    many = any(row.concurrency > 1 or row.tool_fields.get("max_concurrency", 1) > 1 for row in rows)
    speed = ("t/s (total)", "t/s (req)", "peak t/s", "peak t/s (req)") if many else ("t/s", "peak t/s")
    header = ["model", "test", *speed, "ttfr (ms)", "est_ppt (ms)", "e2e_ttft (ms)"]
    table = [[_benchy_cell(cells, title) for title in header] for cells in _benchy_rows(rows, many)]
    return tabulated(header, table)


def _benchy_rows(rows: Sequence[Result], many: bool) -> list[dict[str, Any]]:
    """One dictionary a line: the model's and the test's name, and the figures by kind."""
    plain_kind = {context: kind for kind, context in BENCHY_CONTEXT.items()}
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        kind = plain_kind.get(row.test_kind, row.test_kind)
        decode = kind in (Metric.DECODE, Metric.DECODE_PER_REQUEST, Metric.PEAK_DECODE, Metric.PEAK_PER_REQUEST)
        name = ("ctx_" if row.test_kind in plain_kind else "") + ("tg" if decode else "pp")
        tokens = "" if name.startswith("ctx_") else str(row.generation_tokens if decode else row.prompt_tokens)
        test = (
            f"{name}{tokens}" + (f" @ d{row.depth}" if row.depth else "") + (f" (c{row.concurrency})" if many else "")
        )
        cells = found.setdefault((test,), {"model": row.tool_fields.get("model") or row.model, "test": test})
        cells[kind] = mean_and_deviation(row.mean or 0.0, row.deviation)
    return list(found.values())


_BENCHY_TITLES = {
    "t/s": (Metric.PREFILL, Metric.DECODE),
    "t/s (total)": (Metric.PREFILL, Metric.DECODE),
    "t/s (req)": (Metric.PREFILL_PER_REQUEST, Metric.DECODE_PER_REQUEST),
    "peak t/s": (Metric.PEAK_DECODE,),
    "peak t/s (req)": (Metric.PEAK_PER_REQUEST,),
    "ttfr (ms)": (Metric.TIME_TO_FIRST_RESPONSE,),
    "est_ppt (ms)": (Metric.ESTIMATED_PREFILL_TIME,),
    "e2e_ttft (ms)": (Metric.TIME_TO_FIRST_TOKEN,),
}


def _benchy_cell(cells: dict[Any, str], title: str) -> str:
    if title in cells:
        return cells[title]
    return next((cells[kind] for kind in _BENCHY_TITLES.get(title, ()) if kind in cells), "")


def tabulated(header: Sequence[str], table: Sequence[Sequence[str]]) -> str:
    """tabulate's "pipe" format: the first column left-aligned, the others right-aligned."""
    widths = [
        max(len(name) + TABULATE_HEADER_PADDING, *(len(row[index]) for row in table))
        for index, name in enumerate(header)
    ]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "|" + "|".join(
        ":" + "-" * (width + 1) if index == 0 else "-" * (width + 1) + ":" for index, width in enumerate(widths)
    )
    return "\n".join([line(header), rule + "|", *map(line, table), ""])


def mlx_lm_text(rows: Sequence[Result]) -> str:
    """As `mlx_lm benchmark` prints."""
    prefill = next((row for row in rows if row.test_kind is Metric.PREFILL), None)
    decode = next((row for row in rows if row.test_kind is Metric.DECODE), None)
    if prefill is None or decode is None or len(prefill.samples) != len(decode.samples):
        return _plain_table(rows)
    fields = prefill.tool_fields
    memory, seconds = fields.get("peak_memory_gb") or [], fields.get("total_time_seconds") or []
    lines = [
        "Running warmup..",
        f"Timing with prompt_tokens={prefill.prompt_tokens}, generation_tokens={decode.generation_tokens}, "
        f"batch_size={prefill.concurrency}.",
    ]
    for index, (prompt, generation) in enumerate(zip(prefill.samples, decode.samples, strict=True)):
        line = f"Trial {index + 1}:  prompt_tps={prompt:.3f}, generation_tps={generation:.3f}"
        line += f", peak_memory={memory[index]:.3f}" if index < len(memory) else ""
        lines.append(line + (f", total_time={seconds[index]:.3f}" if index < len(seconds) else ""))
    average = f"Averages: prompt_tps={prefill.mean:.3f}, generation_tps={decode.mean:.3f}"
    peak = fields.get("average_peak_memory_gb")
    return "\n".join([*lines, average + (f", peak_memory={peak:.3f}" if peak is not None else ""), ""])


def _plain_table(rows: Sequence[Result]) -> str:
    """For tools that print no table of their own."""
    return tabulated(
        ["model", "quantization", "test", "figure", "unit"],
        [[row.model, row.quantization, row.test, figure(row), row.unit] for row in rows],
    )


TABLES: dict[str, Callable[[Sequence[Result]], str]] = {
    LLAMA_BENCH: llama_bench_table,
    LLAMA_BENCHY: llama_benchy_table,
    MLX_LM_BENCHMARK: mlx_lm_text,
}
