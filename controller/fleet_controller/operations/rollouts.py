"""Carrying a rollout out: a deploy's plan on many hosts, in its order, with every change kept before the next act.

Whoever carries it out may die at any moment: what is on the hosts goes on, and whoever continues asks each host that
was under way what it runs. Pausing and aborting are wishes in the database, so that any terminal can say them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.rollouts import RolloutState
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.planning import StoredPlan, load_plan
from fleet_controller.operations.problems import OperationError
from fleet_controller.operations.rollout_carrier import Carrier, key_of
from fleet_controller.operations.rollout_making import RolloutWish, new_rollout
from fleet_controller.rolling.next_step import interrupted
from fleet_controller.rolling.store import RolloutStore


async def begin(context: FleetContext, plan_id: str, wish: RolloutWish) -> AsyncGenerator[HostEvent]:
    """Carry out a plan of `plan_deploy` as a rollout; each of its hosts ends with one `done` event.

    Leaving detaches: in a resident controller it goes on. Raises OperationError where another rollout has the hosts.
    """
    plan = load_plan(context, plan_id)
    rollout = new_rollout(context, plan, wish)
    if rollout is None:
        return
    async for event in carry_out(context, rollout.number):
        yield event


async def carry_out(context: FleetContext, number: int) -> AsyncGenerator[HostEvent]:
    """Go on with a rollout until it ends, or watch it where this process is at it already. Raises OperationError."""
    if context.running.digest_of(key_of(number)) is None and RolloutStore(context.database).is_carried_out(number):
        raise _elsewhere(number)
    async for event in context.running.join(key_of(number), "", lambda: _run(context, number)):
        yield event


def _elsewhere(number: int) -> OperationError:
    message = f"rollout {number} is carried out by another process"
    return OperationError("rollout-busy", message, f"fleet rollout show {number}")


async def _run(context: FleetContext, number: int) -> AsyncGenerator[HostEvent]:
    store = RolloutStore(context.database)
    with store.carrying_out(number) as ours:
        if not ours:
            raise _elsewhere(number)
        rollout = store.get(number)
        assert rollout is not None
        if rollout.state in (RolloutState.SUPERSEDED, RolloutState.ABORTED):
            message = f"rollout {number} was ended by someone else a moment ago: {rollout.reason}"
            raise OperationError("rollout-state", message, "fleet rollout list")
        if rollout.state is not RolloutState.RUNNING:
            return
        rollout = interrupted(rollout)
        store.save(rollout)
        plan = StoredPlan.model_validate_json(store.plan(number))
        async for event in Carrier(context, store, rollout, plan).run():
            yield event
