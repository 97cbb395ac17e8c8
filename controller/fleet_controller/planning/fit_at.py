"""How one file fits with a backend as a request would have it served, at any context. Pure."""

from fleet_controller.backends import Backend
from fleet_controller.backends.base import MemoryUse, Preallocates, TunesMemory
from fleet_controller.backends.options import EngineOptions, bytes_per_cached_value
from fleet_controller.backends.python_engine import WIDE_DTYPES
from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.resolved import ModelArtifact, ResolvedModel
from fleet_controller.planning.devices import RAM, VRAM, MemoryPool
from fleet_controller.planning.fit import Fit, judge_fit
from fleet_controller.planning.usable import engine_options

FALLBACK_CONTEXT = 8192


def fit_at(
    backend: Backend,
    artifact: ModelArtifact,
    tokens: int,
    request: DeployRequest,
    resolved: ResolvedModel,
    pool: MemoryPool,
    reserve_bytes: int | None = None,
) -> Fit:
    """The verdict for one artifact with `tokens` of context for each request, as the request would have it served."""
    options = engine_options(request)
    use = memory_use(backend, tokens, request, resolved, pool)
    correction = pool.corrections.for_engine(backend.name, _version(backend, request, resolved), pool.device)
    return judge_fit(
        _as_loaded(artifact, options),
        artifact.shape or resolved.shape,
        use,
        pool,
        offloads=backend.offloads,
        reserve_bytes=reserve_bytes,
        correction=correction,
    )


def _as_loaded(artifact: ModelArtifact, options: EngineOptions) -> ModelArtifact:
    """The artifact with its size in memory: weights of 16 bits take twice as much where 32 were asked for."""
    doubled = options.dtype in WIDE_DTYPES and artifact.quantization.upper() in ("BF16", "F16")
    if not doubled or artifact.weights_bytes is None:
        return artifact
    quantization = f"{artifact.quantization} as {options.dtype}"
    return artifact.model_copy(update={"weights_bytes": 2 * artifact.weights_bytes, "quantization": quantization})


def memory_use(
    backend: Backend, tokens: int, request: DeployRequest, resolved: ResolvedModel, pool: MemoryPool
) -> MemoryUse:
    """How the backend would spend memory with the request's slots and options, in the version it would have."""
    options, overrides = engine_options(request), resolved.overrides_for(backend.name)
    use = backend.memory_use(tokens, request.max_parallel or 0, pool.kind != RAM)
    use = use.model_copy(
        update={"bytes_per_cached_value": bytes_per_cached_value(backend, options), "discrete": pool.kind == VRAM}
    )
    if isinstance(backend, TunesMemory):
        use = backend.tuned(use, _version(backend, request, resolved), overrides, options)
    if isinstance(backend, Preallocates):
        use = use.model_copy(update={"preallocation": backend.preallocation(overrides)})
    return use


def _version(backend: Backend, request: DeployRequest, resolved: ResolvedModel) -> str:
    pinned = getattr(backend, "pinned_version", "")
    return request.backend_version or resolved.overrides_for(backend.name).version or pinned


def longest_context(resolved: ResolvedModel, artifact: ModelArtifact) -> int:
    """What the model was made for: nobody asked for less."""
    shape = artifact.shape or resolved.shape
    return resolved.max_context or (shape.context_length if shape else None) or FALLBACK_CONTEXT


def beyond_its_context(resolved: ResolvedModel, artifact: ModelArtifact, tokens: int) -> str:
    """What to say where a context is longer than the model was made for; "" where it is not, or nobody knows."""
    shape = artifact.shape or resolved.shape
    known = [length for length in (resolved.max_context, shape.context_length if shape else None) if length]
    if not known or tokens <= max(known):
        return ""
    return (
        f"context {tokens:,} is longer than the {max(known):,} tokens that the model was made for: "
        "servers cut it off there, or answer worse beyond"
    )
