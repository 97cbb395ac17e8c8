"""Which backends can serve a model on a host, and with which of its files, in fleet's own order. Pure."""

from collections.abc import Iterable, Mapping

from fleet_controller.backends import BACKENDS, Backend, backend_for
from fleet_controller.backends.options import (
    EngineOptions,
    OptionRefusedError,
    TakesEngineOptions,
    check_engine_options,
)
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.resolved import LMSTUDIO, MLX, SAFETENSORS, ModelArtifact, ResolvedModel
from fleet_controller.planning.problem import PlanProblem

Group = tuple[Backend, list[ModelArtifact]]
# Native formats first; plain safetensors are unquantized originals, taken when nothing else is there or on request.
APPLE_PREFERENCE = (("mlx-lm", MLX), ("llama.cpp", "gguf"), ("mlx-lm", SAFETENSORS))
PREFERENCE = (("llama.cpp", "gguf"), ("mlx-lm", MLX), ("mlx-lm", SAFETENSORS))
# Large installs that take most of a GPU for themselves, and a program of the user's own: only when asked for by name.
ON_REQUEST = (("vllm", SAFETENSORS), ("sglang", SAFETENSORS), ("lm-studio", LMSTUDIO), ("lm-studio", "gguf"))
APPLE_ON_REQUEST = (*ON_REQUEST[:3], ("lm-studio", MLX), ("lm-studio", "gguf"))


def backend_named(name: str, backends: Mapping[str, Backend] = BACKENDS) -> Backend:
    """The backend of a name, forgiving punctuation ("llama_cpp"). Raises PlanProblem listing those that exist."""
    wanted = _plain(name)
    found = next((backend for known, backend in backends.items() if _plain(known) == wanted), None)
    if found is None:
        raise PlanProblem("unknown-backend", f"no backend {name!r}", f"there are: {', '.join(backends)}", usage=True)
    return found


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def usable(facts: HostFacts, request: DeployRequest, resolved: ResolvedModel) -> list[Group]:
    """Groups of artifacts by backend and format, best first, largest artifact first within each.

    Raises PlanProblem where nothing is left, saying which wish ruled it out.
    """
    wanted = backend_named(request.backend).name if request.backend else ""
    apple = facts.apple is not None
    preference, on_request = (APPLE_PREFERENCE, APPLE_ON_REQUEST) if apple else (PREFERENCE, ON_REQUEST)
    known = (*preference, *(on_request if wanted else ()))
    groups, reasons, refusals = groups_of(facts, request, resolved, (*known, *by_its_formats(wanted, known)))
    if facts.apple is None:
        # Elsewhere MLX computes on the CPU: it is no fallback for a model that is too large for the GPU.
        groups = [group for group in groups if group[0] is groups[0][0]]
    if not groups and refusals:
        raise PlanProblem("option-refused", refusals[0].message, refusals[0].remedy, refused=True)
    if not groups:
        raise _nothing_usable(request, resolved, wanted, reasons.values())
    return groups


def groups_of(
    facts: HostFacts, request: DeployRequest, resolved: ResolvedModel, known: Iterable[tuple[str, str]]
) -> tuple[list[Group], dict[str, str], list[OptionRefusedError]]:
    """Groups as `usable` says, why backends are of no use here, and which options they refused."""
    wanted = backend_named(request.backend).name if request.backend else ""
    groups: list[Group] = []
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


def on_request_only(backend: str, facts: HostFacts) -> bool:
    """Whether a host gets this backend only where its user asks for it by name."""
    known = APPLE_PREFERENCE if facts.apple is not None else PREFERENCE
    computes_here = backend != "mlx-lm" or facts.apple is not None  # elsewhere MLX computes on the CPU
    return not computes_here or backend not in [name for name, _ in known]


def by_its_formats(wanted: str, known: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
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
