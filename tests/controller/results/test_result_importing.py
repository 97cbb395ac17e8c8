"""What the measuring tools wrote, read back: each format by a captured file."""

from pathlib import Path

import pytest

from fleet_controller.results.columns import DeviationKind, Metric, Source
from fleet_controller.results.importing.model import (
    FileContext,
    ImportFailure,
    Reading,
    model_and_quantization,
    model_and_type,
)
from fleet_controller.results.importing.read import read_file, read_files

SAMPLES = Path(__file__).parent / "data" / "samples"
TOLD = {"host": "box", "chip": "Xeon", "model": "tiny", "backend": "llama.cpp"}


def read(name: str, **told: str) -> Reading:
    reading = read_file(FileContext(name, **(TOLD | told)), (SAMPLES / name).read_bytes())
    assert [str(problem) for problem in reading.problems] == []
    return reading


def problems(content: str | bytes, name: str = "x", **told: str) -> list[str]:
    raw = content.encode() if isinstance(content, str) else content
    return [f"{problem} -> {problem.remedy}" for problem in read_file(FileContext(name, **(TOLD | told)), raw).problems]


def names_of(reading: Reading, *kinds: Metric) -> list[str]:
    return [row.test for row in reading.results if row.test_kind in (kinds or Metric)]


@pytest.mark.parametrize("name", ["llama-bench.json", "llama-bench.jsonl", "llama-bench.csv", "llama-bench.md"])
def test_llama_bench(name: str) -> None:
    reading = read(name, model="") if name != "llama-bench.md" else read(name)
    assert names_of(reading) == ["pp64", "pp128", "tg16", "pp64 @ d256", "pp128 @ d256", "tg16 @ d256"]
    first = reading.results[0]
    assert (first.source, first.host, first.client) == (Source.IMPORTED, "box", "llama-bench")
    assert (first.backend_version, first.backend_commit) == ("b11434", "pypi-sdist")
    assert first.tool_fields["model_type"] == "qwen3 ?B Q4_K - Medium"
    assert reading.runs[0].stdout.strip() in (SAMPLES / name).read_text()


def test_llama_bench_json_tells_the_most() -> None:
    first = read("llama-bench.json", model="", chip="").results[0]
    assert (first.model, first.quantization, first.artifact) == ("tiny", "Q4_K_M", "models/random/tiny-Q4_K_M.gguf")
    assert (first.chip, first.artifact_bytes, first.kv_type) == ("Intel(R) Xeon(R) Processor", 1074432, "f16")
    assert (first.mean, first.deviation, first.samples) == (46076.032213, 5.089966, (46079.6, 46072.4))
    assert (first.repetitions, first.deviation_kind) == (2, DeviationKind.SAMPLE)
    assert first.finished_unix_ms == 1795478128000
    assert first.provenance == "llama-bench.json:2"


def test_what_the_user_says_goes_before_what_is_guessed() -> None:
    assert read("llama-bench.json", model="mine", chip="Mine").results[0].chip == "Mine"


def test_llama_benchy_json() -> None:
    reading = read("llama-benchy.json", model="")
    assert names_of(reading, Metric.PREFILL, Metric.DECODE, Metric.TIME_TO_FIRST_TOKEN) == [
        "pp128", "ttft128", "tg16", "pp128 @ d256", "ttft128 @ d256", "tg16 @ d256",
    ]  # fmt: skip
    prefill = reading.results[0]
    assert (prefill.model, prefill.client_version, prefill.deviation_kind) == ("tiny-random", "0.4.0", "population")
    assert prefill.samples == (12110.682937567433, 14297.864278630002)
    ttft = next(row for row in reading.results if row.test_kind is Metric.TIME_TO_FIRST_TOKEN)
    assert (ttft.unit, ttft.mean) == ("ms", 9.760783500041725)


@pytest.mark.parametrize("name", ["llama-benchy.csv", "llama-benchy.md", "llama-benchy.vllm.stdout"])
def test_llama_benchy_tables(name: str) -> None:
    reading = read(name, model="")
    kinds = {row.test_kind for row in reading.results}
    assert {Metric.PREFILL, Metric.DECODE, Metric.PEAK_DECODE, Metric.TIME_TO_FIRST_TOKEN} <= kinds
    assert {row.depth for row in reading.results} in ({0, 256}, {0, 128})


def test_llama_benchy_with_several_at_once_and_prefix_caching() -> None:
    reading = read("llama-benchy.prefixcache-conc.stdout")
    assert {row.concurrency for row in reading.results} == {1, 2}
    found = {(row.test_kind, row.concurrency): row.mean for row in reading.results}
    assert found[Metric.CONTEXT_PREFILL, 2] == 5966.45
    assert found[Metric.CONTEXT_PREFILL_PER_REQUEST, 2] == 5092.96
    assert found[Metric.CONTEXT_TIME_TO_FIRST_TOKEN, 2] == 63.30
    assert found[Metric.TIME_TO_FIRST_TOKEN, 2] == 32.83
    assert found[Metric.PEAK_PER_REQUEST, 1] == 4310.49


def test_mlx_lm_benchmark() -> None:
    reading = read("mlx_lm.benchmark.txt", backend="")
    prefill, decode = reading.results
    assert (prefill.test, prefill.mean, prefill.samples) == ("pp128", 1983.728, (1647.206, 2169.27, 2134.708))
    assert (decode.test, decode.mean, decode.backend) == ("tg32", 244.595, "mlx-lm")
    assert {row.concurrency for row in read("mlx_lm.benchmark.4bit-b2.txt").results} == {2}


def test_vllm_bench_serve_and_sglang_bench_serving() -> None:
    vllm = {row.test_kind: row for row in read("vllm-bench-serve.json", backend="vllm").results}
    assert vllm[Metric.DECODE].mean == pytest.approx(31.5409, abs=1e-4)
    assert (vllm[Metric.TIME_TO_FIRST_TOKEN].mean, vllm[Metric.DECODE].concurrency) == (193.82171624988587, 2)
    assert vllm[Metric.TIME_TO_FIRST_TOKEN].repetitions == 4
    assert vllm[Metric.DECODE].client == "vllm-bench"
    sglang = {row.test_kind: row for row in read("sglang-bench-serving.jsonl", backend="", model="").results}
    assert (sglang[Metric.DECODE].backend, sglang[Metric.DECODE].client) == ("sglang", "sglang-bench")
    assert (sglang[Metric.DECODE].prompt_tokens, sglang[Metric.DECODE].generation_tokens) == (64, 16)
    assert sglang[Metric.REQUEST_LATENCY].mean == pytest.approx(181.336, abs=1e-3)


def test_the_lab_notes_themselves_can_be_imported() -> None:
    text = (SAMPLES.parent / "lab-notes-results.md").read_bytes()
    reading = read_file(FileContext("notes.md", host="lab", chip="mixed"), text)
    assert reading.problems == []
    assert len(reading.results) == 158
    assert {row.backend for row in reading.results} == {"llama.cpp", "mlx-lm", "sglang", "vllm"}
    nine = next(row for row in reading.results if row.test == "tg64 @ d65536")
    assert (nine.model, nine.quantization, nine.mean, nine.deviation) == ("qwen3.5-9b", "Q8_0", 64.83, 0.19)
    assert (nine.repetitions, nine.artifact) == (5, "unsloth/Qwen3.5-9B-GGUF/Qwen3.5-9B-Q8_0.gguf")
    assert [run.command for run in reading.runs][-1].endswith("-p 1024 -g 64")


def test_what_a_file_does_not_tell_is_asked_for() -> None:
    text = (SAMPLES / "llama-benchy.json").read_text()
    found = problems(text, host="", chip="", backend="", model="")
    assert found == [
        "x: the file does not tell the host -> repeat the import with --host HOST",
        "x: the file does not tell the chip -> repeat the import with --chip CHIP",
        "x: the file does not tell the backend -> repeat the import with --backend BACKEND",
    ]


@pytest.mark.parametrize(
    ("name", "damage", "line", "text"),
    [
        ("llama-bench.json", ('"avg_ts": 46076.032213', '"avg_ts": "fast"'), 2, "'avg_ts' is 'fast', not a number"),
        ("llama-bench.json", ('"samples_ts": [ 46079.6, 46072.4 ]', '"samples_ts": oops'), 46, "this is no JSON"),
        ("llama-bench.jsonl", ('"n_prompt": 128', '"n_prompt": null'), 2, "no n_prompt in this entry"),
        ("llama-bench.csv", ('"7945.034498"', '""'), 4, "no avg_ts in this entry"),
        ("llama-bench.md", ("44603.62 ± 1310.68", "oops"), 3, "this is no row of llama-bench's table"),
        ("llama-benchy.md", ("tg16 @ d256", "tgx @ d256 "), 6, "this is no row of llama-benchy's table"),
        ("llama-benchy.csv", ("tiny-random,tg16,", "tiny-random,what,"), 3, "'what' is no test of llama-benchy"),
        ("mlx_lm.benchmark.txt", ("generation_tps=242.048", "generation_tps=?"), 4, "this is no line of mlx_lm"),
        ("mlx_lm.benchmark.txt", ("Averages", "Killed"), 2, "mlx_lm benchmark ended without its averages"),
        ("vllm-bench-serve.json", ('"failed": 0', '"failed": 1'), 1, "1 requests failed"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_what_to_do(
    name: str, damage: tuple[str, str], line: int, text: str
) -> None:
    content = (SAMPLES / name).read_text()
    assert damage[0] in content
    found = problems(content.replace(*damage, 1), name)
    assert found[0].startswith(f"{name}:{line}: {text}"), found
    assert not found[0].endswith("-> ")


@pytest.mark.parametrize(
    "content", ["", "hello\n", "{}", "[]", "a,b,c\n1,2,3\n", '[{"x": 1}]', "[", '{"a": ', b"\xff\xfe\x00"]
)
def test_what_is_no_result_is_refused_with_a_reason(content: str | bytes) -> None:
    found = problems(content)
    assert found and all(" -> " in problem and not problem.endswith("-> ") for problem in found)


def test_a_file_that_was_cut_off_is_refused() -> None:
    text = (SAMPLES / "llama-bench.json").read_text()
    assert problems(text[: text.rindex("]")])[0].startswith("x:") and problems(text[: len(text) // 2])


def test_one_bad_file_keeps_the_others_out() -> None:
    good = (FileContext("good", **TOLD), (SAMPLES / "llama-bench.json").read_bytes())
    with pytest.raises(ImportFailure, match="bad: no results are found in it"):
        read_files([good, (FileContext("bad", **TOLD), b"nothing")])


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("unsloth/Qwen3.5-9B-GGUF/Qwen3.5-9B-UD-Q4_K_XL.gguf", ("qwen3.5-9b", "UD-Q4_K_XL")),
        ("Qwen3.5-35B-A3B-MXFP4_MOE.gguf", ("qwen3.5-35b-a3b", "MXFP4_MOE")),
        ("big-IQ2_XXS-00001-of-00003.gguf", ("big", "IQ2_XXS")),
        ("mlx-community/Qwen3.5-4B-MLX-4bit", ("qwen3.5-4b", "4bit")),
        ("Qwen/Qwen3.5-4B", ("qwen3.5-4b", "")),
    ],
)
def test_names_of_files(path: str, found: tuple[str, str]) -> None:
    assert model_and_quantization(path) == found


def test_labels_of_llama_bench() -> None:
    assert model_and_type("qwen35moe 35B.A3B Q3_K - Medium") == ("qwen35moe 35B.A3B", "Q3_K_M")
    assert model_and_type("qwen35 9B Q8_0") == ("qwen35 9B", "Q8_0")
