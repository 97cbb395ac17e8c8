"""The contract of a backend. A backend is pure: from facts and options it makes typed steps and commands, and it
parses what the tools printed. Optional powers are Protocols of their own.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from fleet_controller.backends.options import EngineOptions
from fleet_controller.domain.base import EnvironmentVariable, Frozen
from fleet_controller.domain.facts import EngineFacts, GpuFacts, HostFacts
from fleet_controller.domain.resolved import BackendOverrides, ModelArtifact
from fleet_controller.domain.services import ApiKey, MetricsProbe, ReadinessProbe, ToolRun
from fleet_controller.domain.steps import InstallerScript, Step, ToolRef


class BackendError(Exception):
    """A backend cannot do what was asked on this host. `code` is kebab-case, `remedy` says what to do next.

    `refused`: it could, and does not by policy (exit code 3).
    """

    def __init__(self, code: str, message: str, remedy: str = "", *, refused: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy
        self.refused = refused


class InstallRequest(Frozen):
    """`version` in the backend's own forms, empty = the pin; `engine_path` = a folder of binaries to adopt.

    `requirements` are packages that a model needs beside a Python backend. `offline_folder`: an absolute folder on the
    host with wheels, source or release archives; nothing is fetched for the engine then. `installer`: the maker's own
    script that a person agreed to, None = nobody did. `newest`: what keeps versions of its own is to get its newest.
    """

    version: str = ""
    engine_path: str = ""
    gpus: tuple[GpuFacts, ...] = ()
    requirements: tuple[str, ...] = ()
    offline_folder: str = ""
    installer: InstallerScript | None = None
    newest: bool = False


class Installation(Frozen):
    """One install of a backend on one host. `steps` is empty where it is there already.

    `flags` are the options that this very build lists in its `--help`; empty = not known.
    """

    backend: str
    version: str
    install_key: str
    steps: tuple[Step, ...] = ()
    disk_bytes: int = 0
    warnings: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


class ServeOptions(Frozen):
    """`context_tokens` is what one request may use; `max_parallel` 0 = the backend's default; `devices` = GPUs.

    `projector_path` is the multimodal projector's file, "" = without; `cache_bytes` what the plan has for the KV cache.
    """

    model_name: str
    model_path: str
    context_tokens: int
    max_parallel: int = 0
    host: str = "127.0.0.1"
    port: int = 0
    sampling: tuple[tuple[str, str], ...] = ()
    overrides: BackendOverrides = BackendOverrides()
    weights_bytes: int = 0
    hf_home: str = ""
    devices: int = 0
    engine: EngineOptions = EngineOptions()
    projector_path: str = ""
    cache_bytes: int = 0


class ServeCommand(Frozen):
    """`left_out` are the optional words that the installed build does not know; `metrics` None = it tells no rate.

    `before_start`, `after_stop` and `shared_port_path` as in ServiceSpec: for servers that are driven, not started.
    """

    tool: ToolRef
    arguments: tuple[str, ...]
    environment: tuple[EnvironmentVariable, ...] = ()
    readiness: ReadinessProbe = ReadinessProbe()
    served_model_name: str = ""
    metrics: MetricsProbe | None = None
    left_out: tuple[tuple[str, ...], ...] = ()
    before_start: tuple[ToolRun, ...] = ()
    after_stop: tuple[ToolRun, ...] = ()
    shared_port_path: str = ""


class Preallocation(Frozen):
    """The part of each GPU's memory that a server takes at its start, of all of it or of what is free then.

    Everything of the model must fit into that part. Such servers run tensor-parallel over all their GPUs.
    """

    fraction: float
    of_free_memory: bool = False


class MemoryUse(Frozen):
    """How a backend spends memory: over how many sequences recurrent state is kept, and what it reserves per device.

    `bytes_per_cached_value` is that of the KV cache, which may be quantized. `engine` names the rules by which memory
    is allocated ("llama.cpp"; "" = files, caches and the reserve). With them: `micro_batch_tokens` computed at once,
    `output_rows` of logits reserved (0 = one for every token), whether slots share one cache, `uses_nextn` (MTP heads
    draft), `rollback_states` kept beside each recurrent state, what a device's context and the process take, and
    `reserve_share`: a reserve of that part of the sum, `reserve_bytes_per_device` at most.
    """

    context_tokens: int
    sequences: int
    reserve_bytes_per_device: int
    context_is_enforced: bool = True
    preallocation: Preallocation | None = None
    bytes_per_cached_value: float = 2.0
    engine: str = ""
    on_gpu: bool = False
    discrete: bool = True
    unified_cache: bool = True
    micro_batch_tokens: int = 0
    output_rows: int = 0
    flash_attention: bool = True
    uses_nextn: bool = False
    rollback_states: int = 0
    context_bytes_per_device: int = 0
    process_bytes: int = 0
    reserve_share: float = 0.0


@runtime_checkable
class TunesMemory(Protocol):
    """The trait of backends whose memory depends on more than context and slots: settings, arguments, the version."""

    def tuned(self, use: MemoryUse, version: str, overrides: BackendOverrides, options: EngineOptions) -> MemoryUse: ...


class Backend(Protocol):
    """Every backend. `formats` in order of preference; `offloads`: may keep part of a model on the CPU."""

    name: str
    formats: tuple[str, ...]
    default_port: int
    offloads: bool

    def unsupported_reason(self, facts: HostFacts) -> str | None:
        """Why this backend cannot run on the host, or None. The filter before anything else is looked at."""
        ...

    def uses_gpus(self, facts: HostFacts) -> bool:
        """Whether it would compute on the host's NVIDIA GPUs."""
        ...

    def plan_install(self, facts: HostFacts, request: InstallRequest) -> Installation:
        """The install that a request means, with the steps still needed. Raises BackendError."""
        ...

    def model_path(self, artifact: ModelArtifact, hf_home: str) -> str:
        """The absolute path that the server is given: a file or a folder."""
        ...

    def memory_use(self, context_tokens: int, max_parallel: int, on_gpu: bool) -> MemoryUse: ...

    def serve(self, installation: Installation, options: ServeOptions) -> ServeCommand: ...

    def parse_version(self, output: str) -> str | None:
        """The version in what the program printed, in the form of our pins; None where there is none."""
        ...


@runtime_checkable
class Preallocates(Protocol):
    """The trait of backends that take a fixed part of each GPU, and deal a model out to all their GPUs."""

    def preallocation(self, overrides: BackendOverrides) -> Preallocation: ...


@runtime_checkable
class SharesServer(Protocol):
    """The trait of backends whose services on a host are all answered by one server, on one port.

    The server is known by its answer to `shared_port_path`.
    """

    shared_port_path: str


@runtime_checkable
class KeepsModels(Protocol):
    """The trait of backends with a store of their own, into which a model must be put before it is served."""

    def fetches(self, artifact: ModelArtifact) -> bool:
        """Whether it fetches the files itself, so that we fetch none."""
        ...

    def store_steps(self, artifact: ModelArtifact, hf_home: str) -> tuple[Step, ...]:
        """What puts the model into the store, once the files that we fetch are there."""
        ...

    def store_warning(self, artifact: ModelArtifact) -> str:
        """What a person should know of a model that it fetches; "" = nothing."""
        ...


@runtime_checkable
class HasInstaller(Protocol):
    """The trait of backends that come by a script of their maker only. It is run where a person has agreed to it."""

    installer_url: str

    def is_present(self, facts: HostFacts) -> bool: ...


@runtime_checkable
class TakesApiKey(Protocol):
    """The trait of backends whose server asks its clients for a key. The others listen on loopback only.

    `secret` names a secret of the host; the key must reach the server without its command line (docs/api_keys.md).
    """

    def api_key(self, secret: str) -> ApiKey: ...


class BenchOptions(Frozen):
    """Tokens of one test; `depths` are tokens already in the context before it."""

    prompt_tokens: int = 1024
    generation_tokens: int = 64
    depths: tuple[int, ...] = (0,)
    repetitions: int = 5


class BenchRow(Frozen):
    """Tokens a second of one test: `kind` is "prefill" or "decode"; deviation is None where the tool tells none."""

    kind: str
    tokens: int
    depth_tokens: int
    mean_tokens_per_second: float
    deviation_tokens_per_second: float | None
    samples_tokens_per_second: tuple[float, ...] = ()


@runtime_checkable
class Benches(Protocol):
    """The power to bench a model with the backend's own tool."""

    def bench_step(self, installation: Installation, model_path: str, options: BenchOptions) -> Step: ...

    def parse_bench(self, output: str, options: BenchOptions) -> tuple[BenchRow, ...]:
        """Raises BackendError where a requested row is missing: an exit status of 0 proves nothing."""
        ...


def install_key(backend: str, version: str, options: Mapping[str, object]) -> str:
    """`<backend>-<version>-<8 hex>` over build options and platform, as docs/architecture.md says."""
    text = json.dumps(dict(options), sort_keys=True, separators=(",", ":"))
    safe = "".join(character if character.isalnum() or character in "._+" else "_" for character in version)
    return f"{backend}-{safe}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def platform_options(facts: HostFacts) -> dict[str, object]:
    """What of a platform makes an install of another machine useless here."""
    return {"os": facts.system.os, "architecture": facts.system.architecture}


def installed(facts: HostFacts, key: str) -> EngineFacts | None:
    return next((engine for engine in facts.engines if engine.managed and engine.install_key == key), None)


@runtime_checkable
class HasVariants(Protocol):
    """The trait of backends of which some versions are of another kind: other hosts, other memory, the same name."""

    def variant(self, version: str) -> Backend: ...


def engines_of(facts: HostFacts, backend: str) -> tuple[EngineFacts, ...]:
    return tuple(engine for engine in facts.engines if engine.backend == backend)


def hub_snapshot_dir(artifact: ModelArtifact, hf_home: str) -> str:
    """Where huggingface_hub keeps a commit: <hf_home>/hub/models--<owner>--<name>/snapshots/<commit>."""
    return f"{hf_home}/hub/models--{artifact.repository.replace('/', '--')}/snapshots/{artifact.commit}"


def projector_path(artifact: ModelArtifact, hf_home: str) -> str:
    """The absolute path of the multimodal projector that an artifact is used with, or ""."""
    if artifact.projector is None or not artifact.sees:
        return ""
    if artifact.local_path:
        return artifact.projector.path
    return f"{hub_snapshot_dir(artifact, hf_home)}/{artifact.projector.path}"


def require_rows(rows: tuple[BenchRow, ...], options: BenchOptions, tool: str) -> tuple[BenchRow, ...]:
    """The rows, or BackendError naming those that were asked for and are not there."""
    wanted = [
        (kind, tokens, depth)
        for depth in options.depths
        for kind, tokens in (("prefill", options.prompt_tokens), ("decode", options.generation_tokens))
        if tokens
    ]
    found = {(row.kind, row.tokens, row.depth_tokens) for row in rows}
    missing = [f"{row[0]} of {row[1]} at depth {row[2]}" for row in wanted if row not in found]
    if missing:
        raise BackendError(
            "bench-incomplete",
            f"{tool} ended without these results: {', '.join(missing)}",
            "see the job's log; run the bench again",
        )
    return rows
