"""What a user does with a rollout: pause, abort, resume, watch, undo."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Collection
from enum import StrEnum

from fleet_controller.domain.base import Problem
from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.rollouts import HostPhase, Rollout, RolloutHost, RolloutState
from fleet_controller.fanout import merged
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.planning import StoredPlan
from fleet_controller.operations.problems import OperationError, problem_of
from fleet_controller.operations.pull_deploy import stop_shared_pulls
from fleet_controller.operations.restoring import demand_ours, restore
from fleet_controller.operations.rollout_carrier import POLL_SECONDS, key_of
from fleet_controller.operations.rollout_views import in_words, unknown
from fleet_controller.operations.rollout_watching import look_on
from fleet_controller.operations.rollouts import carry_out
from fleet_controller.rolling.neighbours import later_one
from fleet_controller.rolling.next_step import resumed
from fleet_controller.rolling.store import RolloutStore

S = RolloutState


class RolloutAction(StrEnum):
    UNSPECIFIED = "ROLLOUT_ACTION_UNSPECIFIED"
    PAUSE = "ROLLOUT_ACTION_PAUSE"
    ABORT = "ROLLOUT_ACTION_ABORT"
    RESUME = "ROLLOUT_ACTION_RESUME"
    UNDO = "ROLLOUT_ACTION_UNDO"
    WATCH = "ROLLOUT_ACTION_WATCH"


# In which states an action means something. A done rollout is resumed where hosts are left that were away.
_FITS = {
    RolloutAction.PAUSE: (S.RUNNING,),
    RolloutAction.ABORT: (S.RUNNING, S.PAUSED, S.STOPPED),
    RolloutAction.RESUME: (S.RUNNING, S.PAUSED, S.STOPPED, S.ABORTED, S.DONE),
    RolloutAction.UNDO: (S.RUNNING, S.PAUSED, S.STOPPED, S.ABORTED, S.DONE, S.UNDOING),
    RolloutAction.WATCH: (S.RUNNING,),
}
_WISHES = {RolloutAction.PAUSE: S.PAUSED, RolloutAction.ABORT: S.ABORTED}


async def change(context: FleetContext, action: RolloutAction, number: int | None) -> AsyncGenerator[HostEvent]:
    """One action on a rollout (None: the newest that it fits). Raises OperationError where it does not fit."""
    store = RolloutStore(context.database)
    rollout = _chosen(store, action, number)
    if action in _WISHES:
        async for event in _ask(context, rollout, _WISHES[action]):
            yield event
    elif action is RolloutAction.UNDO:
        _demand_undoable(context, store, rollout)
        async for event in context.running.join(
            ("undo", str(rollout.number)), "", lambda: undo(context, rollout.number)
        ):
            yield event
    elif action is RolloutAction.WATCH and context.running.digest_of(key_of(rollout.number)) is None:
        async for event in look_on(store, rollout.number):
            yield event
    else:
        if action is RolloutAction.RESUME and not store.is_carried_out(rollout.number):
            _demand_resumable(store, rollout)
            store.save(resumed(rollout))
        async for event in carry_out(context, rollout.number):
            yield event


def _chosen(store: RolloutStore, action: RolloutAction, number: int | None) -> Rollout:
    states = _FITS.get(action)
    if states is None:
        raise OperationError("usage", "no such action on a rollout", usage=True)
    word = action.value.removeprefix("ROLLOUT_ACTION_").lower()
    if number is None:
        found = next((one for one in store.newest() if one.state in states), None)
        if found is None:
            raise OperationError("no-such-rollout", f"there is no rollout to {word}", "fleet rollout list", usage=True)
        return found
    rollout = store.get(number)
    if rollout is None:
        raise unknown(number)
    if rollout.state not in states:
        message = f"rollout {number} is {rollout.state.value}: there is nothing to {word}"
        raise OperationError("rollout-state", message, f"fleet rollout show {number}", usage=True)
    return rollout


async def _ask(context: FleetContext, rollout: Rollout, wish: RolloutState) -> AsyncGenerator[HostEvent]:
    """Told to whoever carries it out, who lets the hosts under way end; nobody does: it is so at once."""
    store, number = RolloutStore(context.database), rollout.number
    said = False
    while store.is_carried_out(number):
        store.ask(number, wish)  # again each time: whoever has just begun clears what was asked before
        now = store.get(number)
        if now is None or now.state is not S.RUNNING:
            break
        under_way = ", ".join(host.host for host in now.of(HostPhase.CHANGING))
        if under_way and not said:
            said = True
            yield HostEvent(host=f"rollout {number}", stage=wish.value, message=f"waiting for {under_way} to end")
        await asyncio.sleep(POLL_SECONDS)
    with store.carrying_out(number) as ours:
        now = store.get(number)
        if ours and now is not None and now.state in _FITS[RolloutAction.ABORT] and now.state is not wish:
            store.set_state(number, wish, "as asked for")
            await stop_shared_pulls(context, StoredPlan.model_validate_json(store.plan(number)).hosts)
    now = store.get(number)
    assert now is not None
    message = f"{now.state.value}: {now.summary()}"
    yield HostEvent(host=f"rollout {number}", stage=wish.value, message=message, done=True, changed=True)


async def undo(context: FleetContext, number: int) -> AsyncGenerator[HostEvent]:
    """Every host that was touched gets back exactly what ran before; repeated, it goes on where it was cut off.

    A host whose service somebody deployed differently since is left alone, and says so.
    """
    store = RolloutStore(context.database)
    with store.carrying_out(number) as ours:
        rollout = store.get(number)
        if not ours or rollout is None:
            raise OperationError("rollout-busy", f"rollout {number} was begun just now", "fleet rollout list")
        store.set_state(number, S.UNDOING)
        plan = StoredPlan.model_validate_json(store.plan(number))
        touched = [host for host in rollout.hosts if host.touched]
        async for event in merged([_undo_host(context, store, rollout, plan, host) for host in reversed(touched)]):
            yield event
        left = store.get(number)
        assert left is not None
        bad = [host.host for host in left.hosts if host.touched]
        state, reason = (S.UNDOING, f"not undone: {', '.join(bad)}") if bad else (S.UNDONE, "")
        store.set_state(number, state, reason)


def _demand_undoable(context: FleetContext, store: RolloutStore, rollout: Rollout) -> None:
    """An undo below a later rollout of the same service would bring back what that one replaced in its turn.

    Raises OperationError.
    """
    number = rollout.number
    if context.running.digest_of(key_of(number)) is not None or store.is_carried_out(number):
        message = f"rollout {number} is under way"
        raise OperationError("rollout-busy", message, f"fleet rollout abort {number}, then undo it")
    _demand_alone(store, rollout, [host.host for host in rollout.hosts if host.touched])
    other = later_one(rollout, store.of_service(rollout.service), [host.host for host in rollout.hosts])
    if other is not None:
        message = f"rollout {other.number} ({other.title}) came after it"
        raise OperationError("rollout-state", message, f"fleet rollout undo {other.number} comes first", usage=True)


def _demand_resumable(store: RolloutStore, rollout: Rollout) -> None:
    """What a later rollout put on a host is not replaced by an older one that goes on. Raises OperationError."""
    names = [host.host for host in resumed(rollout).of(HostPhase.WAITING)]
    _demand_alone(store, rollout, names)
    other = later_one(rollout, store.of_service(rollout.service), names)
    if other is not None:
        message = f"rollout {other.number} ({other.title}) came after it"
        remedy = f"fleet rollout undo {other.number} first, or deploy what you want there"
        raise OperationError("rollout-state", message, remedy, usage=True)


def _demand_alone(store: RolloutStore, rollout: Rollout, names: Collection[str]) -> None:
    """Raises OperationError where another rollout is under way on one of these hosts."""
    for other in store.unfinished():
        shared = [host.host for host in other.hosts if host.host in names]
        if other.number != rollout.number and shared and store.is_carried_out(other.number):
            message = f"rollout {other.number} ({other.title}) is under way on {', '.join(shared)}"
            raise OperationError("rollout-busy", message, f"fleet rollout watch {other.number}")


async def _undo_host(
    context: FleetContext, store: RolloutStore, rollout: Rollout, plan: StoredPlan, host: RolloutHost
) -> AsyncGenerator[HostEvent]:
    number, service = rollout.number, rollout.service
    known = context.inventory().hosts.get(host.host)
    put = next((item.shown.service for item in plan.hosts if item.shown.host == host.host), None)
    try:
        if known is None:
            raise OperationError("no-such-host", "the host is no longer in hosts.yaml", "fleet hosts")
        if host.before is None:  # it was begun, and ended before anything was changed
            store.set_host(number, _with(host, HostPhase.UNDONE))
            yield HostEvent(host=host.host, stage="undo", message="nothing was changed there", done=True)
            return
        await demand_ours(context, known, service, host.before, put)
        store.set_host(number, _with(host, HostPhase.UNDOING))
        async for event in restore(context, known, service, host.before):
            yield event
        store.set_host(number, _with(host, HostPhase.UNDONE))
        message = f"{service} is as before: {in_words(host.before)}"
        yield HostEvent(host=host.host, stage="undo", message=message, done=True, changed=True)
    except Exception as error:
        problem = problem_of(error)
        store.set_host(number, _with(host, HostPhase.UNDO_FAILED, problem))
        yield HostEvent(host=host.host, stage="undo", done=True, problem=problem)


def _with(host: RolloutHost, phase: HostPhase, problem: Problem | None = None) -> RolloutHost:
    changed = {"phase": phase, "problem": problem, "changed_unix_ms": int(time.time() * 1000)}
    return host.model_copy(update=changed)
