"""The tools that measure: which engine each is for, the step that runs it, and how its rows are read.

Engines' own tools start the model themselves; HTTP clients measure a server: one made for the measurement, a running
service, or a stranger's. In arguments the agent fills in {base_url}, {port}, {book_url}, {result_file} and {seed}.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fleet_controller.backends import BACKENDS
from fleet_controller.backends.base import BackendError, Benches, BenchOptions, Installation, install_key, installed
from fleet_controller.benchmarking import parsers
from fleet_controller.benchmarking.benchy import first_words, program
from fleet_controller.benchmarking.parsers import Row, serving_requests
from fleet_controller.benchmarking.suites import ENGINE, Part
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.steps import BenchStep, PythonEnvironmentStep, Step, ToolRef

LLAMA_BENCHY_VERSION = "0.4.0"
# 201 MB were measured (facts/backends.md), and as much again while it is built beside.
LLAMA_BENCHY_DISK_BYTES = 450_000_000
# Tools print a line a repetition at least; one over a deep context of a large model takes long on a CPU.
STALL_SECONDS = 3600.0
WARMUP_RUNS = 4
ENGINE_CLIENTS = {"llama.cpp": "llama-bench", "mlx-lm": "mlx_lm.benchmark"}
SERVING_CLIENTS = {"vllm": "vllm-bench", "sglang": "sglang-bench"}


@dataclass(frozen=True)
class Subject:
    """What is measured: the engine and the file, or the server and the name it answers to.

    `base_url` is that of a server that runs already, "{base_url}" for one made for the measurement; `tokenizer` is a
    folder on the host, "" where there is none.
    """

    backend: str
    installation: Installation
    model_path: str
    served_model_name: str = ""
    base_url: str = "{base_url}"
    tokenizer: str = ""
    discards_first: bool = False


@dataclass(frozen=True)
class Client:
    """One tool. `over_http`: it measures a server. `backends` empty = any. `deep`: it measures at depths."""

    name: str
    over_http: bool
    deep: bool
    backends: tuple[str, ...]
    step: Callable[[Subject, Part, Installation], BenchStep]
    parse: Callable[[Mapping[str, Any], Part, int], tuple[Row, ...]]


def client_for(backend: str, wanted: str, part: Part) -> Client:
    """The tool of a part on a backend. Raises BackendError where it cannot measure that backend."""
    name = wanted or part.client
    if name == ENGINE:
        name = ENGINE_CLIENTS.get(backend, "llama-benchy")
    client = CLIENTS.get(name)
    if client is None:
        raise BackendError("unknown-client", f"no client {name!r}", f"there are: {', '.join(CLIENTS)}")
    if client.backends and backend not in client.backends:
        fitting = ENGINE_CLIENTS.get(backend) or SERVING_CLIENTS.get(backend)
        also = f"{fitting} or llama-benchy" if fitting else "llama-benchy"
        raise BackendError("unknown-client", f"{name} does not measure {backend}", f"use {also}")
    return client


def install_client(facts: HostFacts, client: Client, subject: Installation, offline_folder: str) -> Installation:
    """The install that the tool is in: the engine's own, or llama-benchy's environment with the steps still needed."""
    if client.name != "llama-benchy":
        return subject
    requirement = f"llama-benchy=={LLAMA_BENCHY_VERSION}"
    key = install_key(
        "llama-benchy", LLAMA_BENCHY_VERSION, {"os": facts.system.os, "machine": facts.system.architecture}
    )
    ready = Installation(backend="llama-benchy", version=LLAMA_BENCHY_VERSION, install_key=key)
    if installed(facts, key):
        return ready
    step = PythonEnvironmentStep(
        install_key=key,
        backend="llama-benchy",
        version=LLAMA_BENCHY_VERSION,
        requirements=(requirement,),
        find_links=(offline_folder,) if offline_folder else (),
        no_index=bool(offline_folder),
    )
    steps = (Step(name=f"install {requirement}", python_environment=step),)
    return ready.model_copy(update={"steps": steps, "disk_bytes": LLAMA_BENCHY_DISK_BYTES})


def client_version(client: Client, subject: Subject) -> str:
    return LLAMA_BENCHY_VERSION if client.name == "llama-benchy" else subject.installation.version


def _engine_step(subject: Subject, part: Part, installation: Installation) -> BenchStep:
    """The backend's own bench step; the first repetition of a process is one more where kernels have to warm up."""
    backend = BACKENDS[subject.backend]
    if not isinstance(backend, Benches):
        raise BackendError("no-bench", f"{subject.backend} has no benchmark of its own", "use --client llama-benchy")
    options = BenchOptions(
        prompt_tokens=part.prompt_tokens,
        generation_tokens=part.generation_tokens,
        depths=part.depths,
        repetitions=part.repetitions + (1 if subject.discards_first else 0),
    )
    run = backend.bench_step(installation, subject.model_path, options).run_tool
    assert run is not None
    return BenchStep(tool=run.tool, arguments=run.arguments, environment=run.environment, stall_seconds=STALL_SECONDS)


def _llama_bench(subject: Subject, part: Part, installation: Installation) -> BenchStep:
    """On GPUs it runs until it takes the same time twice; on a CPU llama-bench's own warm-up before each test does."""
    step = _engine_step(subject, part, installation)
    step = step.model_copy(update={"arguments": (*step.arguments, "--progress"), "mark": "benchmark "})
    if not subject.discards_first:
        return step
    once = part.model_copy(update={"depths": (0,), "repetitions": 1})
    warm_up = _engine_step(subject, once, installation).arguments
    return step.model_copy(update={"warmup_arguments": warm_up, "warmup_limit": WARMUP_RUNS})


def _llama_benchy(subject: Subject, part: Part, installation: Installation) -> BenchStep:
    """Latency is not measured ("generation" loses rows where it exceeds the reply), and neither is coherence.

    --exact-tg asks for ignore_eos and min_tokens, so that every reply has all its tokens: llama.cpp knows the first,
    vLLM and SGLang both; benchy.py does it for MLX-LM. Servers that know neither are caught by the rows' parser.
    """
    arguments = [*first_words(subject.backend, subject.tokenizer)]
    arguments += ["--base-url", f"{subject.base_url}/v1", "--model", subject.served_model_name]
    arguments += ["--tokenizer", subject.tokenizer] if subject.tokenizer else []
    arguments += ["--book-url", "{book_url}", "--pp", str(part.prompt_tokens), "--tg", str(part.generation_tokens)]
    arguments += ["--depth", *map(str, part.depths), "--runs", str(part.repetitions)]
    arguments += ["--concurrency", *map(str, part.concurrency), "--latency-mode", "none", "--skip-coherence"]
    arguments += ["--exact-tg", "--no-cache", "--save-result", "{result_file}", "--format", "json"]
    arguments += ["--emit-progress", "{progress_file}"]
    if subject.backend == "sglang":  # it answers HTTP 400 to the token ids that llama-benchy asks for
        arguments += ["--extra-body", "return_token_ids=false"]
    return BenchStep(tool=program(installation.install_key), arguments=tuple(arguments), stall_seconds=STALL_SECONDS)


# Lengths are drawn between 1 and the one asked for where nothing is said of it, and the chat client of some versions
# sends no ignore_eos, yet counts what was asked for (sgl-project/sglang#10746).
_SGLANG_EXACT = ("--random-range-ratio", "1.0", "--extra-request-body", '{"ignore_eos": true}')


def _vllm_bench(subject: Subject, part: Part, installation: Installation) -> BenchStep:
    arguments = ["bench", "serve", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions"]
    arguments += ["--base-url", subject.base_url, "--model", subject.served_model_name]
    arguments += ["--tokenizer", subject.tokenizer or subject.model_path, *_random_load(part, "random")]
    arguments += ["--ignore-eos", "--save-result", "--result-filename", "{result_file}"]
    tool = ToolRef(install_key=installation.install_key, name="venv/bin/vllm")
    return BenchStep(tool=tool, arguments=tuple(arguments), stall_seconds=STALL_SECONDS)


def _sglang_bench(subject: Subject, part: Part, installation: Installation) -> BenchStep:
    arguments = ["-m", "sglang.bench_serving", "--backend", "sglang-oai-chat", "--base-url", subject.base_url]
    arguments += ["--model", subject.served_model_name, "--tokenizer", subject.tokenizer or subject.model_path]
    arguments += [*_random_load(part, "random-ids"), *_SGLANG_EXACT, "--output-file", "{result_file}"]
    tool = ToolRef(install_key=installation.install_key, name="venv/bin/python3")
    return BenchStep(tool=tool, arguments=tuple(arguments), stall_seconds=STALL_SECONDS)


def _random_load(part: Part, dataset: str) -> list[str]:
    """A seed of its own for each run: a server that was measured before has the same prompts in its prefix cache."""
    return [
        "--dataset-name", dataset, "--random-input-len", str(part.prompt_tokens), "--random-output-len",
        str(part.generation_tokens), "--num-prompts", str(serving_requests(part)),
        "--max-concurrency", str(max(part.concurrency)), "--seed", "{seed}",
    ]  # fmt: skip


CLIENTS = {
    client.name: client
    for client in (
        Client("llama-bench", False, True, ("llama.cpp",), _llama_bench, parsers.llama_bench),
        Client("mlx_lm.benchmark", False, False, ("mlx-lm",), _engine_step, parsers.mlx_lm_benchmark),
        Client("llama-benchy", True, True, (), _llama_benchy, parsers.llama_benchy),
        Client("vllm-bench", True, False, ("vllm",), _vllm_bench, parsers.vllm_bench),
        Client("sglang-bench", True, False, ("sglang",), _sglang_bench, parsers.sglang_bench),
    )
}


def measurable_parts(client: Client, part: Part) -> tuple[tuple[Part, ...], str]:
    """The part as this tool can measure it, in as many runs as it needs, and what is left out; "" = nothing."""
    note = ""
    if not client.deep and part.depths != (0,):
        part = part.model_copy(update={"depths": (0,)})
        note = f"{client.name} measures at depth 0 only; --client llama-benchy measures the other depths"
    if client.name == "llama-benchy":
        return (part,), note
    if not client.over_http:
        if part.concurrency != (1,):
            note = f"{client.name} measures one request at a time"
        return (part.model_copy(update={"concurrency": (1,)}),), note
    return tuple(part.model_copy(update={"concurrency": (users,)}) for users in part.concurrency), note
