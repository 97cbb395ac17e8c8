"""Rollouts as a user sees them: with what ran before and what was put there in words."""

from __future__ import annotations

from fleet_controller.domain.base import Frozen, Problem
from fleet_controller.domain.rollouts import Before, Rollout, RolloutHost, Strategy
from fleet_controller.domain.services import ServiceSpec
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.planning import StoredPlan
from fleet_controller.operations.problems import OperationError
from fleet_controller.rolling.store import RolloutStore


class RolloutHostView(Frozen):
    """Mirrors RolloutHostInfo of controller.proto."""

    host: str
    wave: int = 0
    phase: str = ""
    before: str = ""
    after: str = ""
    problem: Problem | None = None
    changed_unix_ms: int = 0


class RolloutView(Frozen):
    """Mirrors RolloutInfo of controller.proto."""

    number: int
    title: str
    service: str
    strategy: Strategy
    state: str
    reason: str = ""
    created_unix_ms: int = 0
    hosts: tuple[RolloutHostView, ...] = ()
    carried_out: bool = False
    summary: str = ""


def list_rollouts(context: FleetContext, number: int | None) -> tuple[RolloutView, ...]:
    """The newest ones, or one. Raises OperationError (usage) where there is no such one."""
    store = RolloutStore(context.database)
    if number is None:
        return tuple(view_of(store, rollout) for rollout in store.newest())
    found = store.get(number)
    if found is None:
        raise unknown(number)
    return (view_of(store, found),)


def unknown(number: int) -> OperationError:
    return OperationError("no-such-rollout", f"there is no rollout {number}", "fleet rollout list", usage=True)


def view_of(store: RolloutStore, rollout: Rollout) -> RolloutView:
    plan = StoredPlan.model_validate_json(store.plan(rollout.number))
    after = {item.shown.host: item.shown.service for item in plan.hosts}
    return RolloutView(
        **rollout.model_dump(include={"number", "title", "service", "reason", "created_unix_ms"}),
        strategy=rollout.strategy,
        state=rollout.state.value,
        hosts=tuple(_host_view(host, after.get(host.host)) for host in rollout.hosts),
        carried_out=store.is_carried_out(rollout.number),
        summary=rollout.summary(),
    )


def _host_view(host: RolloutHost, after: ServiceSpec | None) -> RolloutHostView:
    return RolloutHostView(
        **host.model_dump(include={"host", "wave", "changed_unix_ms"}),
        phase=host.phase.value,
        before=in_words(host.before) if host.before else "",
        after=spec_in_words(after) if after else "",
        problem=host.problem,
    )


def in_words(before: Before) -> str:
    """As "llama.cpp b11434 Q4_K_M, context 32,768, on port 8080", or "nothing"."""
    if before.spec is None:
        return "nothing"
    return spec_in_words(before.spec) + ("" if before.running else ", stopped")


def spec_in_words(spec: ServiceSpec) -> str:
    parts = (spec.backend, spec.backend_version, spec.quantization)
    context = f", context {spec.context_length:,}," if spec.context_length else ""
    return f"{' '.join(part for part in parts if part)}{context} on port {spec.port}"
