"""Which backends and quantizations a host can have, with their fit, and fleet's own order among them. Pure.

That order is what is taken where nothing is known of speeds; planning/considering.py puts what is known into it.
"""

from collections.abc import Iterable, Iterator, Mapping

from fleet_controller.backends import BACKENDS, Backend, backend_for
from fleet_controller.backends.base import MemoryUse, Preallocates, TunesMemory
from fleet_controller.backends.options import (
    EngineOptions,
    OptionRefusedError,
    TakesEngineOptions,
    bytes_per_cached_value,
    check_engine_options,
)
from fleet_controller.backends.python_engine import WIDE_DTYPES
from fleet_controller.domain.base import Frozen
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.plan import DeployRequest, FitVerdict
from fleet_controller.domain.resolved import LMSTUDIO, MLX, SAFETENSORS, ModelArtifact, ResolvedModel
from fleet_controller.planning.contexts import largest_context
from fleet_controller.planning.devices import RAM, VRAM, MemoryPool
from fleet_controller.planning.fit import SMALLEST_CONTEXT, Fit, context_levels, judge_fit
from fleet_controller.planning.problem import PlanProblem

FALLBACK_CONTEXT = 8192
# Native formats first; plain safetensors are unquantized originals, taken when nothing else is there or on request.
APPLE_PREFERENCE = (("mlx-lm", MLX), ("llama.cpp", "gguf"), ("mlx-lm", SAFETENSORS))
PREFERENCE = (("llama.cpp", "gguf"), ("mlx-lm", MLX), ("mlx-lm", SAFETENSORS))
# Large installs that take most of a GPU for themselves, and a program of the user's own: only when asked for by name.
ON_REQUEST = (("vllm", SAFETENSORS), ("sglang", SAFETENSORS), ("lm-studio", LMSTUDIO), ("lm-studio", "gguf"))
APPLE_ON_REQUEST = (*ON_REQUEST[:3], ("lm-studio", MLX), ("lm-studio", "gguf"))


class Choice(Frozen):
    """One backend, artifact and context for one host, and how it fits. `fully_fitting_context` is the longest that
    would fit entirely, None where none of use does (SMALLEST_CONTEXT).

    `because` says why it was taken, where figures had a say.
    """

    backend: str
    artifact: ModelArtifact
    context_tokens: int
    fit: Fit
    longest_context: int
    fully_fitting_context: int | None = None
    because: str = ""


def backend_named(name: str, backends: Mapping[str, Backend] = BACKENDS) -> Backend:
    """The backend of a name, forgiving punctuation ("llama_cpp"). Raises PlanProblem listing those that exist."""
    wanted = _plain(name)
    found = next((backend for known, backend in backends.items() if _plain(known) == wanted), None)
    if found is None:
        raise PlanProblem("unknown-backend", f"no backend {name!r}", f"there are: {', '.join(backends)}", usage=True)
    return found


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def usable(
    facts: HostFacts, request: DeployRequest, resolved: ResolvedModel
) -> list[tuple[Backend, list[ModelArtifact]]]:
    """Groups of artifacts by backend and format, best first, largest artifact first within each.

    Raises PlanProblem where nothing is left, saying which wish ruled it out.
    """
    wanted = backend_named(request.backend).name if request.backend else ""
    apple = facts.apple is not None
    preference, on_request = (APPLE_PREFERENCE, APPLE_ON_REQUEST) if apple else (PREFERENCE, ON_REQUEST)
    known = (*preference, *(on_request if wanted else ()))
    groups, reasons, refusals = _groups(facts, request, resolved, (*known, *_by_its_formats(wanted, known)))
    if facts.apple is None:
        # Elsewhere MLX computes on the CPU: it is no fallback for a model that is too large for the GPU.
        groups = [group for group in groups if group[0] is groups[0][0]]
    if not groups and refusals:
        raise PlanProblem("option-refused", refusals[0].message, refusals[0].remedy, refused=True)
    if not groups:
        raise _nothing_usable(request, resolved, wanted, reasons.values())
    return groups


def _groups(
    facts: HostFacts, request: DeployRequest, resolved: ResolvedModel, known: Iterable[tuple[str, str]]
) -> tuple[list[tuple[Backend, list[ModelArtifact]]], dict[str, str], list[OptionRefusedError]]:
    """Groups as `usable` says, why backends are of no use here, and which options they refused."""
    wanted = backend_named(request.backend).name if request.backend else ""
    groups: list[tuple[Backend, list[ModelArtifact]]] = []
    reasons: dict[str, str] = {}
    refusals: list[OptionRefusedError] = []
    for name, artifact_format in known:
        backend = backend_as_asked(name, request, resolved)
        if wanted and name != wanted:
            continue
        reason = backend.unsupported_reason(facts)
        if reason:
            reasons[name] = reason
            continue
        try:
            check_engine_options(name, backend, engine_options(request))
            artifacts = [
                _seeing(backend, item, request)
                for item in resolved.artifacts
                if item.format == artifact_format and _is_wanted(item, request)
            ]
        except OptionRefusedError as refused:
            refusals.append(refused)
            continue
        if artifacts:
            groups.append((backend, sorted(artifacts, key=lambda item: -(item.weights_bytes or 0))))
    return groups, reasons, refusals


def every_candidate(
    facts: HostFacts,
    request: DeployRequest,
    resolved: ResolvedModel,
    pools: Mapping[str, MemoryPool],
    reserve_bytes: int | None = None,
) -> tuple[tuple[Choice, ...], Mapping[str, str]]:
    """Each backend with each artifact that it can serve on the host, at the context that it would be served with, in
    fleet's own order; and why the other backends are of no use here, by their names.

    Backends that are taken on request only are among them: `on_request_only` tells.
    """
    apple = facts.apple is not None
    first, later = (APPLE_PREFERENCE, APPLE_ON_REQUEST) if apple else (PREFERENCE, ON_REQUEST)
    known = tuple(dict.fromkeys((*first, *later)))
    wanted = backend_named(request.backend).name if request.backend else ""
    groups, reasons, _ = _groups(facts, request, resolved, (*known, *_by_its_formats(wanted, known)))
    found: list[Choice] = []
    for backend, artifacts in groups:
        if backend.name == "mlx-lm" and facts.gpus and not wanted:
            reasons["mlx-lm"] = "MLX computes on the CPU here, beside a GPU"
            continue
        pool = pools[backend.name]
        judged = list(_judge_group(backend, artifacts, request, resolved, pool, reserve_bytes))
        for artifact in artifacts:
            mine = [choice for choice in judged if choice.artifact is artifact]
            found.append(exactly(_at_its_best(backend, pool, mine), request, resolved, pool, reserve_bytes))
    return tuple(found), reasons


def on_request_only(backend: str, facts: HostFacts) -> bool:
    """Whether a host gets this backend only where its user asks for it by name."""
    known = APPLE_PREFERENCE if facts.apple is not None else PREFERENCE
    computes_here = backend != "mlx-lm" or facts.apple is not None  # elsewhere MLX computes on the CPU
    return not computes_here or backend not in [name for name, _ in known]


def _at_its_best(backend: Backend, pool: MemoryPool, judged: list[Choice]) -> Choice:
    fitting = next((choice for choice in judged if choice.fit.verdict is FitVerdict.FITS), None)
    if fitting is not None and (fitting.context_tokens == fitting.longest_context or not _spills(backend, pool)):
        return fitting
    return _second_best(judged)


def _by_its_formats(wanted: str, known: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """A backend that was asked for and has no place in the tables above: its own order counts."""
    if not wanted or any(name == wanted for name, _ in known):
        return ()
    return tuple((wanted, artifact_format) for artifact_format in BACKENDS[wanted].formats)


def engine_options(request: DeployRequest) -> EngineOptions:
    return EngineOptions(**{name: getattr(request, name) for name in EngineOptions.model_fields})


def backend_as_asked(name: str, request: DeployRequest, resolved: ResolvedModel) -> Backend:
    """The backend as it is for the version that would be installed."""
    return backend_for(name, request.backend_version or resolved.overrides_for(name).version)


def _seeing(backend: Backend, artifact: ModelArtifact, request: DeployRequest) -> ModelArtifact:
    """With the multimodal projector where it is wanted and the backend takes one. Raises OptionRefusedError."""
    if not isinstance(backend, TakesEngineOptions) or "vision" not in backend.engine_options:
        return artifact.seeing(False)
    try:
        return artifact if request.vision is None else artifact.seeing(request.vision)
    except ValueError as error:
        raise OptionRefusedError(str(error), "leave --vision out, or name a repository that has one") from None


def _is_wanted(artifact: ModelArtifact, request: DeployRequest) -> bool:
    return not request.quantization or artifact.quantization.lower() == request.quantization.lower()


def _nothing_usable(
    request: DeployRequest, resolved: ResolvedModel, wanted: str, reasons: Iterable[str]
) -> PlanProblem:
    reasons = tuple(dict.fromkeys(reasons))
    if wanted and reasons:
        return PlanProblem("backend-unsupported", reasons[0], "choose another backend with --backend")
    formats = BACKENDS[wanted].formats if wanted else tuple({item.format for item in resolved.artifacts})
    known = [item.quantization for item in resolved.artifacts if item.format in formats and item.quantization]
    on = f" for {wanted}" if wanted else ""
    if request.quantization and known:
        listed = ", ".join(dict.fromkeys(known))
        message = f"{resolved.name} has no quantization {request.quantization!r}{on}"
        return PlanProblem("unknown-quantization", message, f"it has: {listed}", usage=True)
    have = ", ".join(dict.fromkeys(item.format for item in resolved.artifacts)) or "none"
    needs = f"{wanted} takes {' or '.join(formats)}" if wanted else "; ".join(reasons) or "no backend takes them"
    return PlanProblem("no-artifact", f"{resolved.name} comes as {have}, {needs}", "choose another backend or model")


def choose(
    facts: HostFacts,
    request: DeployRequest,
    resolved: ResolvedModel,
    pools: Mapping[str, MemoryPool],
    reserve_bytes: int | None = None,
) -> Choice:
    """The first group that fits entirely, with its largest artifact; else the one that spills least; else the refusal.

    Where no context was asked for and the pool allows no spilling, shorter contexts are tried before the next group.
    `pools` has the memory that each backend would use, by its name.
    A Choice that does not fit has the verdict REFUSED: the caller shows its arithmetic. Raises PlanProblem.
    """
    groups = usable(facts, request, resolved)
    judged: list[Choice] = []
    for backend, artifacts in groups:
        pool = pools[backend.name]
        options = list(_judge_group(backend, artifacts, request, resolved, pool, reserve_bytes))
        fitting = next((option for option in options if option.fit.verdict is FitVerdict.FITS), None)
        if fitting is not None and (fitting.context_tokens == fitting.longest_context or not _spills(backend, pool)):
            return exactly(fitting, request, resolved, pool, reserve_bytes)
        judged += options
    found = _second_best(judged)
    return exactly(found, request, resolved, pools[found.backend], reserve_bytes)


def exactly(
    choice: Choice, request: DeployRequest, resolved: ResolvedModel, pool: MemoryPool, reserve_bytes: int | None
) -> Choice:
    """The choice with the longest context that fits entirely, found to the token instead of by halves."""
    if choice.fully_fitting_context == choice.longest_context:
        return choice
    backend = backend_as_asked(choice.backend, request, resolved)
    longest = longest_context(resolved, choice.artifact)

    def judge(tokens: int) -> Fit:
        return fit_at(backend, choice.artifact, tokens, request, resolved, pool, reserve_bytes)

    found = largest_context(judge, longest, (FitVerdict.FITS,))
    useful = found if found is not None and found >= SMALLEST_CONTEXT else None
    return choice.model_copy(update={"fully_fitting_context": useful})


def _judge_group(
    backend: Backend,
    artifacts: list[ModelArtifact],
    request: DeployRequest,
    resolved: ResolvedModel,
    pool: MemoryPool,
    reserve_bytes: int | None,
) -> Iterator[Choice]:
    """Every artifact at the longest context, then every artifact at half of it, and so on."""
    ladders: dict[int, list[tuple[ModelArtifact, int, int, Fit]]] = {}
    for artifact in artifacts:
        longest = request.context_length or longest_context(resolved, artifact)
        levels = (longest,) if request.context_length else context_levels(longest)
        for position, tokens in enumerate(levels):
            fit = fit_at(backend, artifact, tokens, request, resolved, pool, reserve_bytes)
            ladders.setdefault(position, []).append((artifact, longest, tokens, fit))
    full_fit = {
        id(artifact): next(
            (tokens for rung in ladders.values() for item, _, tokens, fit in rung
             if item is artifact and fit.verdict is FitVerdict.FITS), None)
        for artifact in artifacts
    }  # fmt: skip
    for rung in ladders.values():
        for artifact, longest, tokens, fit in rung:
            yield Choice(
                backend=backend.name,
                artifact=artifact,
                context_tokens=tokens,
                fit=fit,
                longest_context=longest,
                fully_fitting_context=full_fit[id(artifact)],
            )


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


def _spills(backend: Backend, pool: MemoryPool) -> bool:
    """On a discrete GPU the notes serve at full context and let the rest lie on the CPU; elsewhere that only swaps."""
    return backend.offloads and pool.kind == VRAM


def _second_best(judged: list[Choice]) -> Choice:
    """What spills least at the longest context, else a shorter one, else what nobody can judge, else the refusal."""
    at_full = [option for option in judged if option.context_tokens == option.longest_context]
    spilling = [option for option in at_full if option.fit.verdict is FitVerdict.FITS_WITH_OFFLOAD]
    if spilling:
        return min(spilling, key=lambda option: option.fit.offload_bytes)
    for verdict in (FitVerdict.FITS, FitVerdict.FITS_WITH_OFFLOAD):
        found = next((option for option in judged if option.fit.verdict is verdict), None)
        if found is not None:
            return found
    unjudged = next((option for option in at_full if option.fit.verdict is FitVerdict.UNSPECIFIED), None)
    if unjudged is not None:
        return unjudged
    return min(judged, key=lambda option: option.fit.needed_bytes)
