"""SGLang: a virtual environment with a release, or with its main branch at a commit; serves safetensors folders.

`--mem-fraction-static` is the part of the memory then free on each GPU that it takes for weights and caches; what it
computes with (activations, CUDA graphs) lies in the rest. Nothing lies on the CPU. A request that is longer than the
cache is refused by the server, so `--context-length` is what memory was planned for.
"""

import re
from collections.abc import Mapping

from fleet_controller.backends.base import (
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
from fleet_controller.backends.versions import SGLANG_REPOSITORY, SGLANG_VERSION
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.resolved import BackendOverrides
from fleet_controller.domain.services import ApiKey, ConfigurationFile, MetricsProbe, ReadinessProbe
from fleet_controller.domain.steps import ToolRef

MAIN = "main"
PYTHON = "venv/bin/python3"
# What the lab notes take for both of their models.
MEMORY_FRACTION = "0.8"
LOWEST_COMPUTE_CAPABILITY = (7, 5)
# Tokens a second as the scheduler counts them; only with --enable-metrics.
METRICS = MetricsProbe(path="/metrics", gauges=("sglang:gen_throughput",))
ARCHITECTURES = ("x86_64", "aarch64", "arm64")


class SGLang(GpuPythonEngine):
    """See the module's docstring. Versions: "0.5.16", a commit of 7 to 40 digits, or "main" as it is today."""

    name = "sglang"
    pinned_version = SGLANG_VERSION
    default_port = 30000
    engine_options: Mapping[str, tuple[str, ...]] = {
        "kv_cache_type": tuple(word for word in CACHE_TYPE_BYTES if word != "fp8"),
        "tensor_parallel": (),
        "memory_fraction": (),
        "dtype": DTYPES,
    }

    def unsupported_reason(self, facts: HostFacts) -> str | None:
        return unsupported_reason(facts, "SGLang", LOWEST_COMPUTE_CAPABILITY, ARCHITECTURES)

    def plan_install(self, facts: HostFacts, request: InstallRequest) -> Installation:
        source = package_source(request.version or SGLANG_VERSION)
        source = source.model_copy(update={"lowest_capability": LOWEST_COMPUTE_CAPABILITY})
        return plan_environment(facts, self.name, request, source)

    def memory_use(self, context_tokens: int, max_parallel: int, on_gpu: bool) -> MemoryUse:
        sequences = max(max_parallel, 1)
        return MemoryUse(context_tokens=context_tokens * sequences, sequences=sequences, reserve_bytes_per_device=0)

    def preallocation(self, overrides: BackendOverrides) -> Preallocation:
        return Preallocation(fraction=float(overrides.memory_fraction or MEMORY_FRACTION), of_free_memory=True)

    def serve(self, installation: Installation, options: ServeOptions) -> ServeCommand:
        given = options.overrides
        arguments = ["-m", "sglang.launch_server", "--model-path", options.model_path]
        arguments += ["--tp-size", str(options.devices)] if options.devices > 1 else []
        arguments += ["--tool-call-parser", given.tool_call_parser] if given.tool_call_parser else []
        arguments += ["--reasoning-parser", given.reasoning_parser] if given.reasoning_parser else []
        arguments += [*given.speculative, *given.arguments]
        arguments += ["--mem-fraction-static", given.memory_fraction or MEMORY_FRACTION]
        arguments += ["--served-model-name", options.model_name, "--host", options.host, "--port", str(options.port)]
        arguments += ["--context-length", str(options.context_tokens)]
        arguments += ["--max-running-requests", str(options.max_parallel)] if options.max_parallel else []
        arguments += ["--dtype", options.engine.dtype] if options.engine.dtype else []
        arguments += ["--kv-cache-dtype", options.engine.kv_cache_type] if options.engine.kv_cache_type else []
        arguments += ["--enable-metrics"]
        limit = start_limit_seconds(options.weights_bytes)
        return ServeCommand(
            tool=ToolRef(install_key=installation.install_key, name=PYTHON),
            arguments=tuple(arguments),
            environment=given.environment,
            readiness=ReadinessProbe(path="/health", start_limit_seconds=limit),
            served_model_name=options.model_name,
            metrics=METRICS,
        )

    def api_key(self, secret: str) -> ApiKey:
        """A YAML file of options (sglang/srt/server_args_config_parser.py), since it reads no variable and no key file.

        The server prints all its settings at the start; the agent blots the key out of its log.
        """
        return ApiKey(secret=secret, configuration=ConfigurationFile(option="--config", key="api-key"))

    def parse_version(self, output: str) -> str | None:
        return parse_package_version(output)


def package_source(version: str) -> PackageSource:
    """Where a version of SGLang comes from. Raises BackendError."""
    if version == MAIN:
        warning = "SGLang's main branch moves; this host keeps the state it installs now: name a commit to fix it"
        return PackageSource(label=MAIN, requirement=_from_git(""), warnings=(warning,))
    if re.fullmatch(r"[0-9a-f]{7,40}", version):
        return PackageSource(label=version[:9], requirement=_from_git(f"@{version}"))
    if not is_release(version):
        raise BackendError(
            "bad-version",
            f"{version!r} is not a version of SGLang",
            'give a release such as "0.5.16", a commit, or "main"',
        )
    return PackageSource(label=version, requirement=f"sglang=={version}")


def _from_git(at: str) -> str:
    return f"sglang @ git+{SGLANG_REPOSITORY}{at}#subdirectory=python"
