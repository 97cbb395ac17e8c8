"""A rollout from a plan and a wish: which hosts are part of it, in which wave, and whose place it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fleet_controller.domain.base import Frozen
from fleet_controller.domain.plan import PlanAction
from fleet_controller.domain.rollouts import Before, HostPhase, Rollout, RolloutHost, RolloutState, Strategy
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.deploy import TO_RUN
from fleet_controller.operations.planning import PlannedHost, StoredPlan
from fleet_controller.operations.problems import OperationError
from fleet_controller.operations.rollout_carrier import AWAY, key_of
from fleet_controller.rolling.neighbours import takes_place
from fleet_controller.rolling.store import RolloutStore
from fleet_controller.rolling.waves import WaveError, default_canaries, waves_of
from fleet_controller.transport.errors import HostUnreachable


class RolloutWish(Frozen):
    """The order as a user asked for it; "" and None mean: as usual. `canary` "none" asks for none."""

    canary: str = ""
    strategy: Strategy = Strategy()


def new_rollout(context: FleetContext, plan: StoredPlan, wish: RolloutWish) -> Rollout | None:
    """Kept, not begun; None where nothing is to be changed. Raises OperationError."""
    store = RolloutStore(context.database)
    changing = [item for item in plan.hosts if _is_part(item, wish.strategy)]
    if not changing:
        return None
    names = [item.shown.host for item in changing]
    strategy = wish.strategy.model_copy(update={"canaries": _canaries(plan, changing, wish)})
    inventory = context.inventory().hosts
    labels = {name: inventory[name].labels for name in names if name in inventory}
    try:
        waves = waves_of(names, labels, strategy)
    except WaveError as error:
        raise OperationError("usage", str(error), usage=True) from None
    with store.making():
        same = _same_under_way(context, store, plan)
        if same is not None:
            return same
        return _created(store, plan, names, waves, strategy)


def _created(
    store: RolloutStore, plan: StoredPlan, names: list[str], waves: Mapping[str, int], strategy: Strategy
) -> Rollout:
    """Raises OperationError where another rollout is under way on one of the hosts."""
    free = _demand_free(store, names)
    planned = [item.shown.service for item in plan.hosts if item.shown.host in names]
    service = next((spec.name for spec in planned if spec is not None), "")
    if not service:
        raise OperationError(HostUnreachable.code, f"{', '.join(names)} cannot be planned: none answers", "fleet hosts")
    kept = [item.shown.host for item in plan.hosts if item.shown.action is PlanAction.KEEP]
    earlier = [other for other in free if takes_place(other, service, names, kept)]
    hosts = [RolloutHost(host=name, wave=waves[name], before=_inherited(earlier, name)) for name in names]
    hosts += _done_before(earlier, names)
    rollout = Rollout(
        number=0, plan_id=plan.plan_id, title=f"deploy {service}", service=service, strategy=strategy,
        hosts=tuple(hosts),
    )  # fmt: skip
    ended = [other for other in free if other not in earlier]
    return store.create(rollout, plan.model_dump_json(), supersedes=earlier, aborts=ended)


def _canaries(plan: StoredPlan, changing: list[PlannedHost], wish: RolloutWish) -> tuple[str, ...]:
    """Those of the wish, else the first host of each backend: a build for CUDA says nothing about one for Metal.

    A wanted canary that has the service already has proven it. Raises OperationError for one that the plan lacks, and
    for one that cannot be changed, which would prove nothing.
    """
    kinds = {item.shown.host: item.shown.backend for item in changing}
    reachable = [item.shown.host for item in changing if item.shown.action in TO_RUN]
    chosen = default_canaries(reachable, wish.canary, kinds)
    planned = [item.shown.host for item in plan.hosts]
    unknown = [name for name in chosen if name not in planned]
    if unknown:
        message = f"--canary {unknown[0]} is none of the hosts"
        raise OperationError("usage", message, f"one of: {', '.join(planned)}", usage=True)
    for item in plan.hosts:
        if item.shown.host in chosen and item.shown.problem is not None:
            message = f"canary {item.shown.host} proves nothing: {item.shown.problem.message}"
            raise OperationError("canary", message, "name another one with --canary, or none at all: --canary none")
    return tuple(name for name in chosen if name in reachable)


def _same_under_way(context: FleetContext, store: RolloutStore, plan: StoredPlan) -> Rollout | None:
    """A rollout of the same request that this process is at: the same command once more watches it."""
    for other in store.unfinished():
        if context.running.digest_of(key_of(other.number)) is None:
            continue
        if StoredPlan.model_validate_json(store.plan(other.number)).request == plan.request:
            return other
    return None


def _is_part(item: PlannedHost, strategy: Strategy) -> bool:
    away = item.shown.problem is not None and item.shown.problem.code in AWAY
    return item.shown.action in TO_RUN or (strategy.catch_up and away)


def _demand_free(store: RolloutStore, names: Iterable[str]) -> list[Rollout]:
    """Rollouts of these hosts that nobody carries out any more. Raises OperationError for one that is under way."""
    wanted, earlier = set(names), []
    for other in store.unfinished():
        shared = [host.host for host in other.hosts if host.host in wanted]
        if not shared:
            continue
        alive = store.is_carried_out(other.number)
        if alive or other.state is RolloutState.PAUSED:
            how = "is under way" if alive else "is paused"
            raise OperationError(
                "rollout-busy",
                f"rollout {other.number} ({other.title}) {how} on {', '.join(shared)}",
                f"fleet rollout show {other.number}; or end it: fleet rollout abort {other.number}",
            )
        earlier.append(other)
    return earlier


def _inherited(earlier: list[Rollout], name: str) -> Before | None:
    """What ran before the first of several rollouts that were cut off: an undo goes back to that."""
    for other in reversed(earlier):
        for host in other.hosts:
            if host.host == name and host.touched and host.before is not None:
                return host.before
    return None


def _done_before(earlier: list[Rollout], names: list[str]) -> list[RolloutHost]:
    """Hosts that a rollout which was cut off has changed already: part of this one, for an undo."""
    found: dict[str, RolloutHost] = {}
    for other in reversed(earlier):
        for host in other.of(HostPhase.CHANGED):
            if host.host not in names:
                found.setdefault(host.host, host.model_copy(update={"wave": 0}))
    return list(found.values())
