"""What the tools printed, as rows; and every way in which they were seen to lose rows with exit status 0."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from fleet_controller.backends.base import Installation
from fleet_controller.benchmarking import parsers
from fleet_controller.benchmarking.clients import CLIENTS, Subject
from fleet_controller.benchmarking.keys import with_api_key
from fleet_controller.benchmarking.parsers import BenchOutputError
from fleet_controller.benchmarking.suites import Part
from fleet_controller.results.columns import DeviationKind, Metric

DATA = Path(__file__).parent / "data"
LLAMA_PART = Part(prompt_tokens=64, generation_tokens=16, depths=(0, 256), repetitions=2)
BENCHY_PART = Part(client="llama-benchy", prompt_tokens=128, generation_tokens=16, depths=(0, 256), repetitions=2)
MLX_PART = Part(prompt_tokens=128, generation_tokens=32, repetitions=3)
VLLM_PART = Part(client="vllm-bench", prompt_tokens=64, generation_tokens=16, concurrency=(2,), repetitions=2)


def text(name: str) -> str:
    return (DATA / name).read_text(encoding="utf-8")


def benchy(document: Any) -> dict[str, Any]:
    return {"stdout": "", "files": {"result": json.dumps(document)}}


@pytest.mark.parametrize("name", ["llama-bench.json", "llama-bench.jsonl"])
def test_llama_bench_rows(name: str) -> None:
    rows = parsers.llama_bench({"stdout": text(name)}, LLAMA_PART)
    first = rows[0]
    assert (first.kind, first.prompt_tokens, first.generation_tokens, first.depth) == (Metric.PREFILL, 64, 0, 0)
    assert len(first.samples) == first.repetitions == 2
    assert first.tool_fields["build_number"] == 11434
    if name == "llama-bench.json":
        assert (first.mean, first.deviation, first.samples) == (46076.032213, 5.089966, (46079.6, 46072.4))


def test_a_warm_up_repetition_counts_neither_in_the_mean_nor_in_the_samples() -> None:
    document = json.loads(text("llama-bench.json"))
    for row in document:
        row["samples_ts"] = [1.0, 10.0, 12.0]  # the first one of a fresh process is slow
    rows = parsers.llama_bench({"stdout": json.dumps(document)}, LLAMA_PART, discarded=1)
    assert {(row.mean, round(row.deviation or 0, 4), row.samples) for row in rows} == {(11.0, 1.4142, (10.0, 12.0))}


def test_keys_that_come_and_go_between_builds_are_no_trouble() -> None:
    document = json.loads(text("llama-bench.json"))
    for row in document:
        for name in ("load_mode", "lazy_mode", "repack", "fit_target", "samples_ts", "model_type"):
            row.pop(name, None)
        row["use_mmap"] = True
    rows = parsers.llama_bench({"stdout": json.dumps(document)}, LLAMA_PART)
    assert rows[0].samples == ()
    assert "model_type" not in rows[0].tool_fields


def test_a_llama_bench_that_stops_early_is_named_by_the_rows_that_are_missing() -> None:
    lines = text("llama-bench.jsonl").splitlines()
    with pytest.raises(BenchOutputError) as raised:
        parsers.llama_bench({"stdout": "\n".join(lines[:1])}, LLAMA_PART)
    assert raised.value.code == "bench-incomplete"
    assert "tg16 @ d256" in raised.value.message


@pytest.mark.parametrize("said", ["", "[", "error: failed to load model\n", '[{"n_prompt": 64}]'])
def test_a_llama_bench_that_printed_something_else(said: str) -> None:
    with pytest.raises(BenchOutputError):
        parsers.llama_bench({"stdout": said}, LLAMA_PART)


def test_mlx_trials_are_samples_although_two_spaces_follow_their_number() -> None:
    prefill, decode = parsers.mlx_lm_benchmark({"stdout": text("mlx_lm.benchmark.txt")}, MLX_PART)
    assert (prefill.kind, prefill.prompt_tokens, decode.kind, decode.generation_tokens) == (
        Metric.PREFILL, 128, Metric.DECODE, 32)  # fmt: skip
    assert len(prefill.samples) == len(decode.samples) == 3
    assert prefill.mean == pytest.approx(sum(prefill.samples) / 3, rel=1e-3)
    assert prefill.deviation is not None and prefill.deviation_kind is DeviationKind.SAMPLE


def test_an_mlx_benchmark_without_its_averages_or_a_trial_is_incomplete() -> None:
    lines = text("mlx_lm.benchmark.txt").splitlines()
    for lost in ("Averages:", "Trial 2:"):
        kept = "\n".join(line for line in lines if not line.startswith(lost))
        with pytest.raises(BenchOutputError) as raised:
            parsers.mlx_lm_benchmark({"stdout": kept}, MLX_PART)
        assert raised.value.code == "bench-incomplete"


def test_llama_benchy_rows_with_their_samples() -> None:
    rows = parsers.llama_benchy(benchy(json.loads(text("llama-benchy.json"))), BENCHY_PART)
    by_test = {row.test: row for row in rows}
    prefill = by_test[Metric.PREFILL, 128, 0, 1]
    assert prefill.mean == 13204.273608098718
    assert prefill.deviation_kind is DeviationKind.POPULATION  # numpy.std divides by n
    assert len(prefill.samples) == 2
    assert by_test[Metric.TIME_TO_FIRST_TOKEN, 128, 256, 1].mean > 0
    assert (Metric.DECODE, 16, 256, 1) in by_test


def test_llama_benchy_loses_its_prefill_rows_to_the_latency_mode_and_still_exits_0() -> None:
    document = json.loads(text("llama-benchy.json"))
    for entry in document["benchmarks"]:
        entry["pp_throughput"] = None
    with pytest.raises(BenchOutputError) as raised:
        parsers.llama_benchy(benchy(document), BENCHY_PART)
    assert "pp128 @ d0 (c1), pp128 @ d256 (c1)" in raised.value.message


def test_llama_benchy_that_sglang_answers_with_http_400_has_no_results_and_says_why() -> None:
    with pytest.raises(BenchOutputError) as raised:
        parsers.llama_benchy({"stdout": text("llama-benchy.sglang.stdout"), "files": {}}, BENCHY_PART)
    assert raised.value.code == "bench-incomplete"
    assert "return_token_ids is not supported" in raised.value.message


def test_a_requested_depth_or_concurrency_that_is_not_there_is_missed() -> None:
    document = benchy(json.loads(text("llama-benchy.json")))
    for change in ({"depths": (0, 256, 512)}, {"concurrency": (1, 4)}, {"generation_tokens": 32}):
        with pytest.raises(BenchOutputError):
            parsers.llama_benchy(document, BENCHY_PART.model_copy(update=change))


def test_a_run_that_llama_benchy_leaves_out_silently_is_missed() -> None:
    """Seen with a model that stopped early: mean and deviation 0.00 over one of two runs."""
    document = json.loads(text("llama-benchy.json"))
    document["benchmarks"][0]["tg_throughput"]["values"].pop()
    with pytest.raises(BenchOutputError) as raised:
        parsers.llama_benchy(benchy(document), BENCHY_PART)
    assert "1 of 2 runs of tg at depth 0" in raised.value.message


def with_progress(**changes: Any) -> dict[str, Any]:
    """The captured run; the end of its last request says something else."""
    lines = [json.loads(line) for line in text("llama-benchy.json.progress.jsonl").splitlines()]
    last = [line for line in lines if line["type"] == "request_end"][-1]
    last.update(changes)
    found = benchy(json.loads(text("llama-benchy.json")))
    found["files"]["progress"] = "\n".join(json.dumps(line) for line in lines)
    return found


def test_replies_that_have_all_their_tokens_are_rows() -> None:
    assert len(parsers.llama_benchy(with_progress(), BENCHY_PART)) > 4


def test_a_model_that_stopped_early_gives_no_rows() -> None:
    """llama-benchy itself calls 7 tokens of 16 "tg16"."""
    with pytest.raises(BenchOutputError) as raised:
        parsers.llama_benchy(with_progress(total_tokens=7), BENCHY_PART)
    assert "the model stopped after 7 of 16 tokens at depth 256" in raised.value.message
    assert "--generate" in raised.value.remedy


def test_a_request_that_failed_is_named() -> None:
    """llama-benchy prints it, leaves the run out, and exits with status 0."""
    with pytest.raises(BenchOutputError) as raised:
        parsers.llama_benchy(with_progress(total_tokens=0, error="Server disconnected"), BENCHY_PART)
    assert "a request at depth 256 failed: Server disconnected" in raised.value.message


def test_a_speed_of_zero_is_no_result() -> None:
    document = json.loads(text("llama-benchy.json"))
    document["benchmarks"][0]["tg_throughput"]["mean"] = 0.0
    with pytest.raises(BenchOutputError):
        parsers.llama_benchy(benchy(document), BENCHY_PART)


def test_vllm_bench_serve_rows() -> None:
    rows = parsers.vllm_bench({"files": {"result": text("vllm-bench-serve.json")}}, VLLM_PART)
    kinds = {row.kind for row in rows}
    assert {Metric.DECODE, Metric.TIME_TO_FIRST_TOKEN, Metric.TIME_PER_OUTPUT_TOKEN} <= kinds
    assert {row.concurrency for row in rows} == {2}


@pytest.mark.parametrize("change", [{"failed": 1}, {"completed": 3}])
def test_failed_requests_of_vllm_are_no_result(change: dict[str, int]) -> None:
    document = json.loads(text("vllm-bench-serve.json")) | change
    with pytest.raises(BenchOutputError):
        parsers.vllm_bench({"files": {"result": json.dumps(document)}}, VLLM_PART)


def test_sglang_bench_serving_rows_without_a_count_of_failures() -> None:
    document = json.loads(text("sglang-bench-serving.jsonl"))
    part = Part(
        client="sglang-bench",
        prompt_tokens=document["random_input_len"],
        generation_tokens=document["random_output_len"],
        concurrency=(document["max_concurrency"],),
        repetitions=document["completed"] // document["max_concurrency"],
    )
    result = {"files": {"result": text("sglang-bench-serving.jsonl")}}
    assert Metric.DECODE in {row.kind for row in parsers.sglang_bench(result, part)}
    more = part.model_copy(update={"repetitions": part.repetitions + 1})
    with pytest.raises(BenchOutputError):  # it answers fewer requests than were asked, and says nothing of it
        parsers.sglang_bench(result, more)


@pytest.mark.parametrize(
    ("read", "name"),
    [(parsers.vllm_bench, "vllm-bench-serve.json"), (parsers.sglang_bench, "sglang-bench-serving.jsonl")],
)
def test_serving_benchmarks_whose_replies_were_short_give_no_rows(read: Any, name: str) -> None:
    document = json.loads(text(name)) | {"total_output_tokens": 40}
    with pytest.raises(BenchOutputError) as raised:
        read({"files": {"result": json.dumps(document)}}, VLLM_PART)
    assert "40 of 64 tokens were generated" in raised.value.message


FACTS_OF_VLLM = (
    "bench serve --backend openai-chat --endpoint /v1/chat/completions --base-url http://127.0.0.1:8000 --model it "
    "--tokenizer /models/it --dataset-name random --random-input-len 64 --random-output-len 16 --num-prompts 4 "
    "--max-concurrency 2 --seed {seed} --ignore-eos --save-result --result-filename {result_file}"
)
FACTS_OF_SGLANG = (
    "-m sglang.bench_serving --backend sglang-oai-chat --base-url http://127.0.0.1:8000 --model it "
    "--tokenizer /models/it --dataset-name random-ids --random-input-len 64 --random-output-len 16 --num-prompts 4 "
    "--max-concurrency 2 --seed {seed} --random-range-ratio 1.0 --extra-request-body '{\"ignore_eos\": true}' "
    "--output-file {result_file}"
)


@pytest.mark.parametrize(
    ("backend", "client", "program", "words"),
    [("vllm", "vllm-bench", "venv/bin/vllm", FACTS_OF_VLLM),
     ("sglang", "sglang-bench", "venv/bin/python3", FACTS_OF_SGLANG)],
)  # fmt: skip
def test_the_commands_of_serving_benchmarks(backend: str, client: str, program: str, words: str) -> None:
    """As they ran when their outputs were captured, and what makes every reply as long as asked for."""
    install = Installation(backend=backend, version="1", install_key="engine-1")
    subject = Subject(backend, install, "/models/it", "it", "http://127.0.0.1:8000")
    step = CLIENTS[client].step(subject, VLLM_PART, install)
    assert (step.tool.install_key, step.tool.name) == ("engine-1", program)
    assert list(step.arguments) == shlex.split(words)
    keyed = with_api_key(step, "api-key-01")
    assert keyed.arguments == step.arguments and keyed.secret_environment[0].name == "OPENAI_API_KEY"
