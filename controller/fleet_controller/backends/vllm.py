"""vLLM: a virtual environment from the package index or the project's nightly wheels; serves safetensors folders.

It takes its part of each GPU (`--gpu-memory-utilization`) at the start, and does not start where that is not free, or
where the part does not hold the weights and the KV cache of one request at full context. Nothing lies on the CPU.
A version that ends in "+cpu" computes on the CPU: vllm_cpu.py.
"""

import re
from collections.abc import Mapping

from fleet_controller.backends.base import (
    Backend,
    BackendError,
    Installation,
    InstallRequest,
    MemoryUse,
    Preallocation,
    ServeCommand,
    ServeOptions,
)
from fleet_controller.backends.python_engine import (
    CACHE_TYPE_BYTES,
    DTYPES,
    GpuPythonEngine,
    PackageSource,
    is_release,
    parse_package_version,
    plan_environment,
    start_limit_seconds,
    unsupported_reason,
)
from fleet_controller.backends.versions import VLLM_VERSION, VLLM_WHEELS
from fleet_controller.domain.base import EnvironmentVariable
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.resolved import BackendOverrides
from fleet_controller.domain.services import ApiKey, MetricsProbe, ReadinessProbe
from fleet_controller.domain.steps import ToolRef

NIGHTLY = "nightly"
PROGRAM = "venv/bin/vllm"
# vLLM's own default has changed between releases, so it is always said.
MEMORY_FRACTION = "0.9"
# 1.6 GiB of activations and 1.0 GiB of CUDA graphs were measured with an 8B model in BF16 (facts/nvidia_gpu.md).
RESERVE_BYTES = int(2.6 * 1024**3)
LOWEST_COMPUTE_CAPABILITY = (7, 0)
ARCHITECTURES = ("x86_64", "aarch64", "arm64")
METRICS = MetricsProbe(path="/metrics", counters=("vllm:generation_tokens_total",))
# It would report what it serves on which hardware to its makers.
NO_USAGE_STATISTICS = EnvironmentVariable(name="VLLM_NO_USAGE_STATS", value="1")


class Vllm(GpuPythonEngine):
    """See the module's docstring. Versions: "0.26.0", "nightly", a nightly's own version, or the commit of a build."""

    name = "vllm"
    pinned_version = VLLM_VERSION
    default_port = 8000
    engine_options: Mapping[str, tuple[str, ...]] = {
        "kv_cache_type": tuple(CACHE_TYPE_BYTES),
        "tensor_parallel": (),
        "memory_fraction": (),
        "dtype": DTYPES,
    }

    def variant(self, version: str) -> Backend:
        """Itself, or the one that computes on the CPU."""
        from fleet_controller.backends.vllm_cpu import CPU_SUFFIX, VllmCpu

        return VllmCpu() if version.endswith(CPU_SUFFIX) else self

    def unsupported_reason(self, facts: HostFacts) -> str | None:
        return unsupported_reason(facts, "vLLM", LOWEST_COMPUTE_CAPABILITY, ARCHITECTURES)

    def plan_install(self, facts: HostFacts, request: InstallRequest) -> Installation:
        source = package_source(request.version or VLLM_VERSION)
        source = source.model_copy(update={"lowest_capability": LOWEST_COMPUTE_CAPABILITY})
        return plan_environment(facts, self.name, request, source)

    def memory_use(self, context_tokens: int, max_parallel: int, on_gpu: bool) -> MemoryUse:
        sequences = max(max_parallel, 1)
        return MemoryUse(
            context_tokens=context_tokens * sequences, sequences=sequences, reserve_bytes_per_device=RESERVE_BYTES
        )

    def preallocation(self, overrides: BackendOverrides) -> Preallocation:
        return Preallocation(fraction=float(overrides.memory_fraction or MEMORY_FRACTION))

    def serve(self, installation: Installation, options: ServeOptions) -> ServeCommand:
        given = options.overrides
        arguments = serve_arguments(options)
        arguments += ["--gpu-memory-utilization", given.memory_fraction or MEMORY_FRACTION]
        arguments += ["--tensor-parallel-size", str(options.devices)] if options.devices > 1 else []
        arguments += more_arguments(options)
        return serve_command(installation, options, arguments, (NO_USAGE_STATISTICS, *given.environment))

    def api_key(self, secret: str) -> ApiKey:
        """Its environment (vllm/envs.py): what `--api-key` would put on the command line. It guards /v1 only."""
        return ApiKey(secret=secret, environment="VLLM_API_KEY")

    def parse_version(self, output: str) -> str | None:
        return parse_package_version(output)


def serve_arguments(options: ServeOptions) -> list[str]:
    """`vllm serve` up to what depends on the device it computes on."""
    given = options.overrides
    arguments = ["serve", options.model_path, *given.speculative]
    arguments += ["--reasoning-parser", given.reasoning_parser] if given.reasoning_parser else []
    if given.tool_call_parser:
        arguments += ["--enable-auto-tool-choice", "--tool-call-parser", given.tool_call_parser]
    arguments += [*given.arguments, "--served-model-name", options.model_name]
    arguments += ["--host", options.host, "--port", str(options.port)]
    return [*arguments, "--max-model-len", str(options.context_tokens)]


def more_arguments(options: ServeOptions) -> list[str]:
    """What only a user asks for."""
    arguments = ["--max-num-seqs", str(options.max_parallel)] if options.max_parallel else []
    arguments += ["--dtype", options.engine.dtype] if options.engine.dtype else []
    arguments += ["--kv-cache-dtype", options.engine.kv_cache_type] if options.engine.kv_cache_type else []
    return arguments


def serve_command(
    installation: Installation,
    options: ServeOptions,
    arguments: list[str],
    environment: tuple[EnvironmentVariable, ...],
) -> ServeCommand:
    limit = start_limit_seconds(options.weights_bytes)
    return ServeCommand(
        tool=ToolRef(install_key=installation.install_key, name=PROGRAM),
        arguments=tuple(arguments),
        environment=environment,
        readiness=ReadinessProbe(path="/health", start_limit_seconds=limit),
        served_model_name=options.model_name,
        metrics=METRICS,
    )


def package_source(version: str) -> PackageSource:
    """Where a version of vLLM comes from. Raises BackendError."""
    if version == NIGHTLY:
        warning = "vLLM nightly is another build every day; this host keeps the one it installs now"
        return PackageSource(
            label=NIGHTLY,
            requirement="vllm",
            extra_index_urls=(f"{VLLM_WHEELS}/nightly",),
            torch_backend="auto",
            warnings=(warning,),
        )
    if re.fullmatch(r"[0-9a-f]{40}", version):
        index = (f"{VLLM_WHEELS}/{version}",)
        return PackageSource(label=version[:9], requirement="vllm", extra_index_urls=index, torch_backend="auto")
    if not is_release(version):
        raise BackendError(
            "bad-version",
            f"{version!r} is not a version of vLLM",
            'give a release such as "0.26.0", "nightly", or the full commit of a build',
        )
    nightly = (f"{VLLM_WHEELS}/nightly",) if ".dev" in version or "+" in version else ()
    return PackageSource(label=version, requirement=f"vllm=={version}", extra_index_urls=nightly, torch_backend="auto")
