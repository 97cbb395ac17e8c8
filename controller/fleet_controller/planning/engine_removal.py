"""Which installs may go: those that are asked for and unused, or those that a newer one has made superfluous."""

from fleet_controller.backends import BACKENDS
from fleet_controller.backends.pins import pinned_version
from fleet_controller.domain.base import Problem
from fleet_controller.domain.engines import (
    EngineKept,
    EngineRemoval,
    EnginesRequest,
    EnginesVerdict,
    HostEnginesPlan,
    InstallUse,
)
from fleet_controller.domain.facts import EngineFacts, HostFacts
from fleet_controller.domain.sizes import gibibytes
from fleet_controller.planning.engine_state import EngineState, stopped


def plan_removal(host_name: str, state: EngineState, request: EnginesRequest) -> HostEnginesPlan:
    """REFUSE where any of the installs that the request names is used, or where a cut-off upgrade may go back to it."""
    chosen = matching(state.facts, request)
    if not chosen:
        what = request.install_key or f"{request.backend} {request.version}"
        return HostEnginesPlan(host=host_name, verdict=EnginesVerdict.KEEP, reason=f"{what} is not installed here")
    for engine in chosen:
        problem = _in_use(state.use_of(engine.install_key)) or _still_needed(engine, state)
        if problem:
            return stopped(host_name, EnginesVerdict.REFUSE, problem).plan
    removals = tuple(_removal(engine, state, "asked for") for engine in chosen)
    reason = ", ".join(removal.install_key for removal in removals)
    return HostEnginesPlan(host=host_name, verdict=EnginesVerdict.CHANGE, reason=reason, removals=removals)


def matching(facts: HostFacts, request: EnginesRequest) -> list[EngineFacts]:
    """Installs of ours that a removal names, by key or by backend and version."""
    ours = [engine for engine in facts.engines if engine.managed]
    if request.install_key:
        return [engine for engine in ours if engine.install_key == request.install_key]
    return [engine for engine in ours if engine.backend == request.backend and engine.version == request.version]


def _in_use(use: InstallUse) -> Problem | None:
    if use.services:
        remedy = f"fleet stop {use.services[0]} --remove, or `fleet backends upgrade` moves it to another version"
        message = f"{use.install_key} is used by {', '.join(use.services)}"
        return Problem(code="engine-in-use", message=message, remedy=remedy)
    if use.jobs:
        message = f"{use.install_key} is used by the job {use.jobs[0]}"
        return Problem(code="engine-in-use", message=message, remedy="wait until it has ended")
    return None


def _still_needed(engine: EngineFacts, state: EngineState) -> Problem | None:
    """Who asks for a removal may not want to undo a rollout any more; an upgrade in mid-air is another thing."""
    why = _unfinished_move(engine, state)
    if not why:
        return None
    remedy = "repeat the upgrade first: it comes to its end, or goes back"
    return Problem(code="engine-in-use", message=f"{engine.install_key}: {why}", remedy=remedy)


def _removal(engine: EngineFacts, state: EngineState, reason: str) -> EngineRemoval:
    return EngineRemoval(
        install_key=engine.install_key,
        backend=engine.backend,
        version=engine.version or "",
        freed_bytes=state.use_of(engine.install_key).own_bytes,
        reason=reason,
    )


def plan_collection(host_name: str, state: EngineState, request: EnginesRequest) -> HostEnginesPlan:
    """Installs that nobody uses, that are not the pin, and that are older than one which has served; and leftovers."""
    removals: list[EngineRemoval] = []
    kept: list[EngineKept] = []
    ours = [one for one in state.facts.engines if one.managed and request.backend in ("", one.backend)]
    for engine in sorted(ours, key=lambda one: (one.backend, one.install_key)):
        family = [one for one in ours if one.backend == engine.backend]
        why = _way_back(engine, state) or _reason_to_keep(
            engine, family, state.use_of(engine.install_key), max(request.keep, 1)
        )
        if why:
            version = engine.version or ""
            kept.append(EngineKept(install_key=engine.install_key, backend=engine.backend, version=version, reason=why))
        else:
            removals.append(_removal(engine, state, "unused, and a newer one has served"))
    leftovers = tuple(leftover for leftover in state.leftovers if not leftover.used_by)
    freed = sum(one.freed_bytes for one in removals) + sum(one.size_bytes for one in leftovers)
    found = bool(removals or leftovers)
    return HostEnginesPlan(
        host=host_name,
        verdict=EnginesVerdict.CHANGE if found else EnginesVerdict.KEEP,
        reason=f"frees {gibibytes(freed)}" if found else "nothing to collect",
        removals=tuple(removals),
        kept=tuple(kept),
        leftovers=leftovers,
    )


def _way_back(engine: EngineFacts, state: EngineState) -> str:
    """A service that was moved off it and may come back."""
    undoes = (way.why for way in state.undoes if way.install_key == engine.install_key)
    return _unfinished_move(engine, state) or next(undoes, "")


def _unfinished_move(engine: EngineFacts, state: EngineState) -> str:
    """A service that was moved off it, and has not proven yet that it can stay away."""
    names = [move.new.name for move in state.unfinished if move.old.tool.install_key == engine.install_key]
    return f"{', '.join(names)} may have to go back to it" if names else ""


def _reason_to_keep(engine: EngineFacts, family: list[EngineFacts], use: InstallUse, keep: int) -> str:
    """Why an install stays; "" = it may go."""
    if use.services or use.jobs:
        return f"used by {', '.join((*use.services, *use.jobs))}"
    backend = BACKENDS.get(engine.backend)
    if backend is not None and engine.version and engine.version == pinned_version(backend):
        return "the pinned version"
    created = engine.created_unix_ms
    if created is None:
        return "its age is not known"
    served = sorted((one for one in family if one.served_unix_ms is not None), key=lambda one: -_age(one))
    if engine in served[:keep]:
        return "among the newest that have served" if keep > 1 else "the newest that has served"
    if not any(_age(one) > created for one in served):
        return "nothing newer has served"
    return ""


def _age(engine: EngineFacts) -> int:
    return engine.created_unix_ms or 0
