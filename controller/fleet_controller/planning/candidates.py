"""Which backend, file and context a host gets where nothing is known of speeds, with their fit. Pure.

planning/considering.py puts what is known of speeds into that order.
"""

from collections.abc import Iterator, Mapping

from fleet_controller.backends import Backend
from fleet_controller.domain.base import Frozen
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.plan import DeployRequest, FitVerdict
from fleet_controller.domain.resolved import ModelArtifact, ResolvedModel
from fleet_controller.planning.contexts import largest_context
from fleet_controller.planning.devices import VRAM, MemoryPool
from fleet_controller.planning.fit import SMALLEST_CONTEXT, Fit, context_levels
from fleet_controller.planning.fit_at import fit_at, longest_context
from fleet_controller.planning.usable import (
    APPLE_ON_REQUEST,
    APPLE_PREFERENCE,
    ON_REQUEST,
    PREFERENCE,
    backend_as_asked,
    backend_named,
    by_its_formats,
    groups_of,
    usable,
)


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
    groups, reasons, _ = groups_of(facts, request, resolved, (*known, *by_its_formats(wanted, known)))
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


def _at_its_best(backend: Backend, pool: MemoryPool, judged: list[Choice]) -> Choice:
    fitting = next((choice for choice in judged if choice.fit.verdict is FitVerdict.FITS), None)
    if fitting is not None and (fitting.context_tokens == fitting.longest_context or not _spills(backend, pool)):
        return fitting
    return _second_best(judged)


def exactly(
    choice: Choice, request: DeployRequest, resolved: ResolvedModel, pool: MemoryPool, reserve_bytes: int | None
) -> Choice:
    """The choice with the longest context that fits entirely, found to the token instead of by halves.

    It may be longer than what was asked for, up to what the model was made for.
    """
    longest = longest_context(resolved, choice.artifact)
    if (choice.fully_fitting_context or 0) >= longest:
        return choice
    backend = backend_as_asked(choice.backend, request, resolved)

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
