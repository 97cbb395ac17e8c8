"""vLLM built for the CPU: versions that end in "+cpu", on Linux hosts whose GPU is not used or not there.

Its wheels are the project's own, on an index beside the nightly ones; PyTorch comes without CUDA. Weights and KV cache
lie in the machine's memory. Settings as they were run on a host without a GPU: facts/backends.md, section 4.
"""

import math
from collections.abc import Mapping

from fleet_controller.backends.base import (
    BackendError,
    Installation,
    InstallRequest,
    MemoryUse,
    ServeCommand,
    ServeOptions,
)
from fleet_controller.backends.python_engine import (
    DTYPES,
    GpuPythonEngine,
    PackageSource,
    is_release,
    parse_package_version,
    plan_environment,
)
from fleet_controller.backends.versions import VLLM_WHEELS
from fleet_controller.backends.vllm import NO_USAGE_STATISTICS, more_arguments, serve_arguments, serve_command
from fleet_controller.domain.base import EnvironmentVariable
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.services import ApiKey

CPU_SUFFIX = "+cpu"
# 2.8 GB resident in four processes with a model of 3 MB and 1 GiB of KV cache; a cache is a whole number of GiB.
RESERVE_BYTES = 3 * 1024**3
# 2.1 GB with PyTorch for the CPU, and as much again while it is built beside.
INSTALL_DISK_BYTES = 5_000_000_000
GIB = 1024**3
ARCHITECTURES = ("x86_64", "aarch64", "arm64")


class VllmCpu(GpuPythonEngine):
    """See the module's docstring. The name is vLLM's: only the version tells them apart."""

    name = "vllm"
    default_port = 8000
    engine_options: Mapping[str, tuple[str, ...]] = {"dtype": DTYPES}

    def unsupported_reason(self, facts: HostFacts) -> str | None:
        if facts.system.os != "linux":
            return "vLLM runs on Linux only"
        if facts.system.architecture not in ARCHITECTURES:
            return f"vLLM has no wheels for {facts.system.architecture or 'an unknown architecture'}"
        libc = facts.system.libc
        return "vLLM has no wheels for musl" if libc is not None and libc.startswith("musl") else None

    def uses_gpus(self, facts: HostFacts) -> bool:
        return False

    def plan_install(self, facts: HostFacts, request: InstallRequest) -> Installation:
        release = request.version.removesuffix(CPU_SUFFIX)
        if not is_release(request.version) or "+" in release:
            raise BackendError(
                "bad-version",
                f"{request.version!r} is not a version of vLLM for the CPU",
                'give a release with "+cpu" behind it, such as "0.32.0+cpu"',
            )
        source = PackageSource(
            label=request.version,
            requirement=f"vllm=={request.version}",
            extra_index_urls=(f"{VLLM_WHEELS}/{release}/cpu",),
            torch_backend="cpu",
            needs_gpu=False,
            disk_bytes=INSTALL_DISK_BYTES,
        )
        return plan_environment(facts, self.name, request, source)

    def memory_use(self, context_tokens: int, max_parallel: int, on_gpu: bool) -> MemoryUse:
        sequences = max(max_parallel, 1)
        return MemoryUse(
            context_tokens=context_tokens * sequences, sequences=sequences, reserve_bytes_per_device=RESERVE_BYTES
        )

    def serve(self, installation: Installation, options: ServeOptions) -> ServeCommand:
        gibibytes = max(math.ceil(options.cache_bytes / GIB), 1)
        environment = (
            NO_USAGE_STATISTICS,
            EnvironmentVariable(name="VLLM_CPU_KVCACHE_SPACE", value=str(gibibytes)),
            # Binding threads needs the NUMA layout, which containers and virtual machines do not always show.
            EnvironmentVariable(name="VLLM_CPU_OMP_THREADS_BIND", value="nobind"),
            *options.overrides.environment,
        )
        arguments = [*serve_arguments(options), *more_arguments(options)]
        return serve_command(installation, options, arguments, environment)

    def api_key(self, secret: str) -> ApiKey:
        """As vLLM takes it: from its environment, never its command line."""
        return ApiKey(secret=secret, environment="VLLM_API_KEY")

    def parse_version(self, output: str) -> str | None:
        return parse_package_version(output)
