"""What vLLM and SGLang have in common: an environment of their own on a Linux host with NVIDIA GPUs."""

import re

from fleet_controller.backends.base import (
    BackendError,
    Installation,
    InstallRequest,
    hub_snapshot_dir,
    install_key,
    installed,
    platform_options,
)
from fleet_controller.backends.offline import offline_environment
from fleet_controller.backends.options import F16_BYTES, EngineOptions
from fleet_controller.backends.python_range import python_range
from fleet_controller.backends.versions import PYTHON_RANGES
from fleet_controller.domain.base import Frozen
from fleet_controller.domain.facts import GpuFacts, HostFacts
from fleet_controller.domain.resolved import SAFETENSORS, ModelArtifact
from fleet_controller.domain.steps import PythonEnvironmentStep, Step

# `--kv-cache-dtype` of both (their --help), and the bytes of one value; "auto" is the model's own type.
CACHE_TYPE_BYTES = {
    "auto": 2.0,
    "bfloat16": 2.0,
    "fp8": 1.0,
    "fp8_e4m3": 1.0,
    "fp8_e5m2": 1.0,
}
DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
WIDE_DTYPES = ("float", "float32")
WIDE_BYTES = 4.0
# 9.5 GB were measured for SGLang, 5.9 GB for vLLM with a CUDA build of PyTorch (facts/backends.md).
INSTALL_DISK_BYTES = 10_000_000_000
SLOWEST_LOAD_BYTES_PER_SECOND = 100_000_000
# The first start of vLLM took 184 s before it answered, on an H200 (facts/nvidia_gpu.md): compilation, graph capture.
SHORTEST_START_LIMIT_SECONDS = 900.0
_RELEASE = re.compile(r"\d+(\.\d+)+((a|b|rc|\.post|\.dev)\d+)*(\+[a-z0-9.]+)?")


class PackageSource(Frozen):
    """Where a version comes from: the requirement, and the index that has it beside the usual one."""

    label: str
    requirement: str
    extra_index_urls: tuple[str, ...] = ()
    torch_backend: str = ""
    lowest_capability: tuple[int, int] = (0, 0)
    needs_gpu: bool = True
    disk_bytes: int = INSTALL_DISK_BYTES
    warnings: tuple[str, ...] = ()


class GpuPythonEngine:
    """The part of the backend contract that both answer alike."""

    formats: tuple[str, ...] = (SAFETENSORS,)
    offloads = False

    def uses_gpus(self, facts: HostFacts) -> bool:
        return bool(facts.gpus)

    def check_options(self, options: EngineOptions) -> None:
        """Any of them goes with any other."""

    def bytes_per_cached_value(self, options: EngineOptions) -> float:
        if options.kv_cache_type in ("", "auto"):
            return WIDE_BYTES if options.dtype in WIDE_DTYPES else F16_BYTES
        return CACHE_TYPE_BYTES[options.kv_cache_type]

    def model_path(self, artifact: ModelArtifact, hf_home: str) -> str:
        return artifact.local_path or hub_snapshot_dir(artifact, hf_home)


def is_release(version: str) -> bool:
    """Whether it can stand behind "==": 0.26.0, 0.5.10.post1, 0.17.2rc1.dev13+gf34032433."""
    return _RELEASE.fullmatch(version) is not None


def unsupported_reason(
    facts: HostFacts, backend: str, lowest_capability: tuple[int, int], architectures: tuple[str, ...]
) -> str | None:
    """Why a CUDA engine cannot run on the host, or None."""
    if facts.system.os != "linux":
        return f"{backend} runs on Linux only"
    if not facts.gpus:
        return f"{backend} needs an NVIDIA GPU"
    if facts.system.architecture not in architectures:
        return f"{backend} has no wheels for {facts.system.architecture or 'an unknown architecture'}"
    if facts.system.libc is not None and facts.system.libc.startswith("musl"):
        return f"{backend} has no wheels for musl"
    reasons = [too_old(gpu, backend, lowest_capability) for gpu in facts.gpus]
    return None if None in reasons else reasons[0]  # a card that is too old may stay out of sight


def too_old(gpu: GpuFacts, backend: str, lowest_capability: tuple[int, int]) -> str | None:
    """Why an engine's kernels do not run on a card, or None; a capability that nobody knows is not held against it."""
    if gpu.compute_capability_major is None:
        return None
    own = (gpu.compute_capability_major, gpu.compute_capability_minor or 0)
    if own >= lowest_capability:
        return None
    wanted = f"{lowest_capability[0]}.{lowest_capability[1]}"
    return f"{backend} needs compute capability {wanted}, GPU {gpu.index} ({gpu.name}) has {own[0]}.{own[1]}"


def plan_environment(facts: HostFacts, backend: str, request: InstallRequest, source: PackageSource) -> Installation:
    """The install in one resolution: the notes' second `uv pip install` replaces what the first one brought.

    A package that a model needs in another version than the backend asks for is both required and an override of
    what the backend says: uv refuses the pair otherwise. Raises BackendError.
    """
    if request.engine_path:
        raise BackendError(
            "cannot-adopt",
            f"{backend} is installed in an environment of its own; it cannot be adopted",
            "leave --engine-path out",
        )
    if source.needs_gpu and not request.gpus:
        raise BackendError(
            "no-gpu", f"{backend} has no GPU to run on here", "see CUDA_VISIBLE_DEVICES of this host in hosts.yaml"
        )
    for gpu in request.gpus if source.needs_gpu else ():
        reason = too_old(gpu, backend, source.lowest_capability)
        if reason:
            remedy = "leave it out with CUDA_VISIBLE_DEVICES for this host in hosts.yaml"
            raise BackendError("gpu-too-old", reason, remedy)
    requirements = (source.requirement, *request.requirements)
    python = python_range(PYTHON_RANGES[backend], source.label).request(facts.system.python_version)
    options = {"requirements": requirements, "index": source.extra_index_urls, "torch": source.torch_backend}
    key = install_key(backend, source.label, {**platform_options(facts), **options, "python": python})
    found = Installation(backend=backend, version=source.label, install_key=key, warnings=source.warnings)
    if installed(facts, key):
        return found
    _require_tools(facts, backend, () if request.offline_folder else requirements)
    step = PythonEnvironmentStep(
        install_key=key,
        backend=backend,
        version=source.label,
        python=python,
        requirements=requirements,
        torch_backend=source.torch_backend,
        extra_index_urls=source.extra_index_urls,
        overrides=request.requirements,
    )
    if request.offline_folder:
        step, warnings = offline_environment(step, request.offline_folder)
        found = found.model_copy(update={"warnings": (*source.warnings, *warnings)})
    steps = (Step(name=f"install {backend} {source.label}", python_environment=step),)
    return found.model_copy(update={"steps": steps, "disk_bytes": source.disk_bytes})


def _require_tools(facts: HostFacts, backend: str, requirements: tuple[str, ...]) -> None:
    names = {tool.name for tool in facts.tools}
    needed = {"uv": f"it makes {backend}'s environment"}
    if any("git+" in requirement for requirement in requirements):
        needed["git"] = f"{backend} needs a package from a git repository here"
    for tool, purpose in needed.items():
        if names and tool not in names:
            raise BackendError(
                "cannot-install",
                f"{tool} not found: {purpose}",
                f"install {tool} on the host, or name its path under `tools` in hosts.yaml and run `fleet up` again",
            )


def start_limit_seconds(weights_bytes: int) -> float:
    """Without any sign of progress for so long, a start has failed."""
    return SHORTEST_START_LIMIT_SECONDS + weights_bytes / SLOWEST_LOAD_BYTES_PER_SECOND


def parse_package_version(output: str) -> str | None:
    """From `pip show` ("Version: 0.26.0"), the metadata of a dist-info folder, or a bare version.

    `vllm --version` is not asked: it takes a minute (facts/backends.md).
    """
    found = re.search(r"^(?:Version:\s*)?(\d+(?:\.\d+)+\S*)\s*$", output, re.MULTILINE)
    return found[1] if found else None
