"""MLX-LM: a virtual environment from the package index; serves MLX (and plain safetensors) folders.

Its server has no option for the context: the KV cache grows with each request. `--context` is what memory is planned
for, not a limit that the server holds.
"""

import re
import statistics

from fleet_controller.backends.base import (
    BackendError,
    BenchOptions,
    BenchRow,
    Installation,
    InstallRequest,
    MemoryUse,
    ServeCommand,
    ServeOptions,
    hub_snapshot_dir,
    install_key,
    installed,
    platform_options,
    require_rows,
)
from fleet_controller.backends.offline import offline_environment
from fleet_controller.backends.python_range import python_range
from fleet_controller.backends.versions import MLX_LM_VERSION, MLX_VERSION, PYTHON_RANGES
from fleet_controller.domain.base import EnvironmentVariable
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.resolved import MLX, SAFETENSORS, ModelArtifact
from fleet_controller.domain.services import ReadinessProbe
from fleet_controller.domain.steps import PythonEnvironmentStep, RunToolStep, Step, ToolRef

PYTHON = "venv/bin/python3"
# The server answers chats under this name whatever it was started with (samples/mlx_lm.server.chat.json).
SERVED_MODEL_NAME = "default_model"
# Activations of one prefill step and the process itself.
RESERVE_BYTES = 512 * 1024**2
# 218 MB on Linux (facts/backends.md), and as much again while it is built beside.
INSTALL_DISK_BYTES = 500_000_000
SLOWEST_LOAD_BYTES_PER_SECOND = 100_000_000
SHORTEST_START_LIMIT_SECONDS = 180.0
BENCH_STALL_SECONDS = 1800.0
_NUMBER = r"([0-9.]+(?:[eE][+-]?[0-9]+)?)"


class MlxLm:
    """See the module's docstring. Versions are those of the mlx-lm distribution: "0.32.2"."""

    name = "mlx-lm"
    pinned_version = MLX_LM_VERSION
    formats: tuple[str, ...] = (MLX, SAFETENSORS)
    default_port = 8080
    offloads = False

    def unsupported_reason(self, facts: HostFacts) -> str | None:
        system = facts.system
        if system.os == "darwin" and system.architecture != "arm64":
            return "MLX needs Apple silicon"
        if system.libc is not None and system.libc.startswith("musl"):
            return "MLX has no wheels for musl"
        return None if system.os in ("linux", "darwin") else f"MLX is not built for {system.os}"

    def uses_gpus(self, facts: HostFacts) -> bool:
        return False  # Metal on Apple silicon, else the CPU: what we install has no CUDA part

    def plan_install(self, facts: HostFacts, request: InstallRequest) -> Installation:
        if request.engine_path:
            raise BackendError(
                "cannot-adopt",
                "MLX-LM is installed in an environment of its own; it cannot be adopted",
                "leave --engine-path out",
            )
        version = request.version or MLX_LM_VERSION
        if not re.fullmatch(r"\d+(\.\d+)*([a-z]+\d+)?", version):
            raise BackendError("bad-version", f"{version!r} is not a version of mlx-lm", 'give one such as "0.32.2"')
        requirements = _requirements(facts, version)
        python = python_range(PYTHON_RANGES[self.name], version).request(facts.system.python_version)
        options = {"requirements": requirements, **({"python": python} if python else {})}
        key = install_key(self.name, version, {**platform_options(facts), **options})
        if installed(facts, key):
            return Installation(backend=self.name, version=version, install_key=key)
        if facts.tools and not any(tool.name == "uv" for tool in facts.tools):
            raise BackendError(
                "cannot-install", "uv not found: it makes MLX-LM's environment",
                "install uv on the host, or name its path under `tools` in hosts.yaml and run `fleet up` again",
            )  # fmt: skip
        step = PythonEnvironmentStep(
            install_key=key, backend=self.name, version=version, python=python, requirements=requirements
        )
        warnings: tuple[str, ...] = ()
        if request.offline_folder:
            step, warnings = offline_environment(step, request.offline_folder)
        steps = (Step(name=f"install mlx-lm {version}", python_environment=step),)
        return Installation(
            backend=self.name,
            version=version,
            install_key=key,
            steps=steps,
            disk_bytes=INSTALL_DISK_BYTES,
            warnings=warnings,
        )

    def model_path(self, artifact: ModelArtifact, hf_home: str) -> str:
        return artifact.local_path or hub_snapshot_dir(artifact, hf_home)

    def memory_use(self, context_tokens: int, max_parallel: int, on_gpu: bool) -> MemoryUse:
        sequences = max(max_parallel, 1)
        return MemoryUse(
            context_tokens=context_tokens * sequences,
            sequences=sequences,
            reserve_bytes_per_device=RESERVE_BYTES,
            context_is_enforced=False,
        )

    def serve(self, installation: Installation, options: ServeOptions) -> ServeCommand:
        arguments = ["-m", "mlx_lm", "server", "--model", options.model_path, "--log-level", "DEBUG"]
        arguments += [*options.overrides.arguments, "--host", options.host, "--port", str(options.port)]
        if options.max_parallel:
            parallel = str(options.max_parallel)
            arguments += ["--decode-concurrency", parallel, "--prompt-concurrency", parallel]
        limit = SHORTEST_START_LIMIT_SECONDS + options.weights_bytes / SLOWEST_LOAD_BYTES_PER_SECOND
        # /v1/models scans $HF_HOME/hub and drops the connection where that folder is missing.
        hf_home = (EnvironmentVariable(name="HF_HOME", value=options.hf_home),) if options.hf_home else ()
        return ServeCommand(
            tool=ToolRef(install_key=installation.install_key, name=PYTHON),
            arguments=tuple(arguments),
            environment=(*hf_home, *options.overrides.environment),
            readiness=ReadinessProbe(path="/health", start_limit_seconds=limit),
            served_model_name=SERVED_MODEL_NAME,
        )

    def parse_version(self, output: str) -> str | None:
        """From `pip show` ("Version: 0.32.2") or a bare version."""
        found = re.search(r"^(?:Version:\s*)?(\d+(?:\.\d+)+\S*)\s*$", output, re.MULTILINE)
        return found[1] if found else None

    def bench_step(self, installation: Installation, model_path: str, options: BenchOptions) -> Step:
        if any(options.depths):
            raise BackendError(
                "no-depth", "mlx_lm.benchmark measures at depth 0 only", "leave the other depths out for this host"
            )
        arguments = ["-m", "mlx_lm.benchmark", "--model", model_path, "-p", str(options.prompt_tokens)]
        arguments += ["-g", str(options.generation_tokens), "-n", str(options.repetitions)]
        tool = ToolRef(install_key=installation.install_key, name=PYTHON)
        run = RunToolStep(tool=tool, arguments=tuple(arguments), stall_seconds=BENCH_STALL_SECONDS, capture_output=True)
        return Step(name="mlx_lm.benchmark", run_tool=run)

    def parse_bench(self, output: str, options: BenchOptions) -> tuple[BenchRow, ...]:
        return require_rows(parse_mlx_benchmark(output), options, "mlx_lm.benchmark")


def _requirements(facts: HostFacts, version: str) -> tuple[str, ...]:
    """mlx is pinned with the mlx-lm it was tried with; for another mlx-lm the index resolves it."""
    pin = f"=={MLX_VERSION}" if version == MLX_LM_VERSION else ""
    extra = "[cpu]" if facts.system.os == "linux" else ""
    return (f"mlx-lm=={version}", f"mlx{extra}{pin}")


def parse_mlx_benchmark(output: str) -> tuple[BenchRow, ...]:
    """Rows of `mlx_lm.benchmark`'s text: the trials give the deviation, the last line the averages.

    No row where a line is missing: the caller says which.
    """
    timing = re.search(r"prompt_tokens=(\d+), generation_tokens=(\d+)", output)
    averages = re.search(rf"^Averages: prompt_tps={_NUMBER}, generation_tps={_NUMBER}", output, re.MULTILINE)
    trials = re.findall(rf"^Trial \d+:\s+prompt_tps={_NUMBER}, generation_tps={_NUMBER}", output, re.MULTILINE)
    if not timing or not averages or not trials:
        return ()
    rows = []
    for position, kind in enumerate(("prefill", "decode")):
        samples = tuple(float(trial[position]) for trial in trials)
        rows.append(
            BenchRow(
                kind=kind,
                tokens=int(timing[position + 1]),
                depth_tokens=0,
                mean_tokens_per_second=float(averages[position + 1]),
                deviation_tokens_per_second=statistics.stdev(samples) if len(samples) > 1 else None,
                samples_tokens_per_second=samples,
            )
        )
    return tuple(rows)
