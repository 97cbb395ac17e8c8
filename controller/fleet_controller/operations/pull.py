"""Carrying pulls out: relays on all hosts, their events, and the orders that follow; each decision is kept at once.

Whoever carries one out may die at any moment: relays go on along the routes that they have; whoever comes next reads
what they told meanwhile from their jobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.pulls import PlannedPull, PullPart
from fleet_controller.fanout import merged
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.problems import OperationError
from fleet_controller.operations.pull_carrier import PullCarrier
from fleet_controller.operations.pull_plan import load_pull_plan
from fleet_controller.pulling.store import PullStore

LOOK_SECONDS = 0.5
SETTLED = (PullPart.HAS, PullPart.REFUSE, PullPart.FAIL)


async def run_pulls(context: FleetContext, plan_id: str) -> AsyncGenerator[HostEvent]:
    """A plan of `plan_pull`; each host ends with one `done` event. Leaving detaches. Raises OperationError."""
    plan = load_pull_plan(context, plan_id)
    for host in plan.failed:
        yield HostEvent(host=host.host, stage="pull", done=True, problem=host.problem)
    for pull in plan.pulls:
        for host in pull.hosts:
            if host.part in SETTLED:
                message = f"has {pull.files.repository} already" if host.part is PullPart.HAS else ""
                yield HostEvent(host=host.host, stage="pull", message=message, done=True, problem=host.problem)
    todo = [pull for pull in plan.pulls if any(host.part is PullPart.FETCH for host in pull.hosts)]
    for pull in todo:
        PullStore(context.database).create(pull)
    async for event in merged(carry_out(context, pull) for pull in todo):
        yield event


async def carry_out(context: FleetContext, pull: PlannedPull) -> AsyncGenerator[HostEvent]:
    """Go on with a pull until it ends, or watch it where this process is at it already. Raises OperationError."""
    async for event in context.running.join(("pull", pull.pull_id), "", lambda: _run(context, pull)):
        yield event


async def _run(context: FleetContext, pull: PlannedPull) -> AsyncGenerator[HostEvent]:
    store = PullStore(context.database)
    with store.carrying_out(pull.pull_id) as ours:
        if not ours:
            message = f"another process carries out the pull of {pull.files.repository}"
            problem = OperationError(
                "pull-busy", message, "wait for it; repeat the command to see what is left"
            ).problem
            for host in pull.partners:
                yield HostEvent(host=host.host, stage="pull", done=True, problem=problem)
            return
        async for event in PullCarrier(context, store, pull).run():
            yield event


async def stop_pulls(context: FleetContext, plan_id: str) -> AsyncGenerator[HostEvent]:
    """Ends what a plan of `plan_pull` would go on with; each of its hosts ends with one `done` event."""
    for pull in load_pull_plan(context, plan_id).pulls:
        message = "no such pull runs"
        if pull.resumes:
            await stop(context, pull)
            message = "stopped; what has arrived stays"
        for host in pull.hosts:
            yield HostEvent(host=host.host, stage="pull", message=message, done=True, changed=pull.resumes)


async def stop(context: FleetContext, pull: PlannedPull) -> None:
    """Returns once its relays were told to end, by whoever carries it out, or by us where nobody does."""
    store = PullStore(context.database)
    store.stop(pull.pull_id)
    elsewhere = context.running.digest_of(("pull", pull.pull_id)) is None and store.is_carried_out(pull.pull_id)
    if not elsewhere:
        async for _ in carry_out(context, pull):
            pass
    while elsewhere:
        await asyncio.sleep(LOOK_SECONDS)
        elsewhere = store.is_carried_out(pull.pull_id)


async def resume_all(context: FleetContext) -> None:
    """What a controller that begins to run does: goes on with what another one was killed at."""
    for pull in PullStore(context.database).running():
        async for _ in carry_out(context, pull):
            pass
