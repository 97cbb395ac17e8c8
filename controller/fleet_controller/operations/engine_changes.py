"""Carrying out a plan about engines on one host.

An upgrade installs beside, then moves services one by one: the new engine has to get ready and answer a question, else
the service goes back to the engine it came from, and no other one is moved.
"""

import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from fleet_controller.domain.base import Problem
from fleet_controller.domain.engines import EnginesAction, EnginesRequest, EnginesVerdict
from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.sizes import gibibytes
from fleet_controller.operations.canary import note_proven
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.engines import begin, end, gather, needs_from
from fleet_controller.operations.golden import GoldenBench
from fleet_controller.operations.jobs import run_job
from fleet_controller.operations.launch import TAKEN_OVER, launch
from fleet_controller.operations.problems import OperationError, problem_of
from fleet_controller.operations.resolving import catalog
from fleet_controller.planning.engine_state import EngineState, Move, PlannedEngines
from fleet_controller.planning.engines import plan_engines, unknown_options
from fleet_controller.planning.jobs import smoke_job
from fleet_controller.planning.service import same_service
from fleet_controller.transport.errors import TransportError
from fleet_inventory.hosts import Host


@dataclass
class _Done:
    """What was done on a host, for its last event."""

    installed: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    freed_bytes: int = 0
    golden: list[dict[str, Any]] = field(default_factory=list)


async def change_host(
    context: FleetContext, host: Host | None, planned: PlannedEngines, request: EnginesRequest
) -> AsyncGenerator[HostEvent]:
    """One host's part of a plan. The same work under way is joined; other work on its engines is refused."""
    if host is None:
        gone = Problem(code="no-such-host", message="the host is no longer in hosts.yaml", remedy="repeat the command")
        yield HostEvent(host=planned.plan.host, done=True, problem=gone)
        return
    # By what was asked for: the plan of a repeated command is made while the first one is under way.
    key, digest = (host.name, "engines"), request.model_dump_json(exclude={"pattern"})
    running = context.running.digest_of(key)
    if running is not None and running != digest:
        message = "another change of this host's engines is under way in this controller"
        busy = Problem(code="busy", message=message, remedy="wait for it: repeat its command to watch it")
        yield HostEvent(host=host.name, done=True, problem=busy)
        return
    async for event in context.running.join(key, digest, lambda: _change(context, host, planned, request)):
        yield event


async def _change(
    context: FleetContext, host: Host, planned: PlannedEngines, request: EnginesRequest
) -> AsyncGenerator[HostEvent]:
    """Whatever goes wrong is the last event."""
    done = _Done()
    removes = request.action in (EnginesAction.REMOVE, EnginesAction.COLLECT)
    work = (
        _remove(context, host, planned, request, done) if removes else _install(context, host, planned, request, done)
    )
    try:
        async for event in work:
            yield event
        yield HostEvent(
            host=host.name, stage="engines", message=_told(done, planned), done=True, changed=True,
            result_json=json.dumps(vars(done)),
        )  # fmt: skip
    except (OperationError, TransportError) as error:
        figures = json.dumps(vars(done)) if done.golden else ""
        yield HostEvent(host=host.name, stage="engines", done=True, problem=problem_of(error), result_json=figures)


def _told(done: _Done, planned: PlannedEngines) -> str:
    parts = [f"installed {', '.join(done.installed)}"] if done.installed else []
    parts += [f"moved {', '.join(done.moved)} to {planned.plan.backend} {planned.plan.version}"] if done.moved else []
    parts += [f"removed {', '.join(done.removed)}"] if done.removed else []
    parts += [f"cleared {len(done.leftovers)} leftover(s)"] if done.leftovers else []
    parts += [f"{gibibytes(done.freed_bytes)} freed"] if done.removed or done.leftovers else []
    return "; ".join(parts) or "nothing was left to do"


async def _install(
    context: FleetContext, host: Host, planned: PlannedEngines, request: EnginesRequest, done: _Done
) -> AsyncGenerator[HostEvent]:
    golden = GoldenBench(context, host, request.golden_threshold) if planned.canary else None
    for job in planned.jobs:
        async for event in run_job(context, host, job, []):
            yield event
        done.installed.append(job.title.removeprefix("install "))
    for position, move in enumerate(planned.moves):
        try:
            async for event in _move(context, host, move, golden):
                yield event
        except (OperationError, TransportError) as error:
            problem = problem_of(error)
            left = [later.new.name for later in planned.moves[position + 1 :]]
            rest = f"; not moved: {', '.join(left)}" if left else ""
            raise OperationError(problem.code, f"{problem.message}{rest}", problem.remedy, tail=problem.tail) from error
        finally:
            done.golden = [one.model_dump(mode="json") for one in golden.judgements] if golden is not None else []
        done.moved.append(move.new.name)
    if golden is not None:
        note_proven(context, (await _fresh(context, host)).facts.machine_id, planned)


async def _move(context: FleetContext, host: Host, move: Move, golden: GoldenBench | None) -> AsyncGenerator[HostEvent]:
    """One service to its new engine, or back. Raises OperationError "upgrade-failed", or what the host says."""
    name, state = move.new.name, await _fresh(context, host)
    present = next((status.spec for status in state.services if status.spec.name == name), None)
    if present is None or not (same_service(present, move.old) or same_service(present, move.new)):
        message = f"{name} was changed by someone else since the plan was shown"
        raise OperationError("plan-changed", message, "repeat the command to see the new plan")
    unknown = unknown_options(state.facts, move.new)
    if unknown:
        message = f"{move.new.backend} {move.new.backend_version} does not know {', '.join(unknown)} of {name}"
        remedy = f"it stays on {move.old.backend_version}; deploy it anew with --backend-version"
        raise OperationError("option-unknown-to-build", message, remedy)
    if golden is not None:
        async for event in golden.before(move):
            yield event
    begin(context, state.facts.machine_id, move)
    try:
        async for event in _prove(context, host, state.facts, move, golden):
            yield event
    except (OperationError, TransportError) as error:
        if problem_of(error).code in TAKEN_OVER:
            end(context, state.facts.machine_id, name)
            raise
        worse = "is not as good" if problem_of(error).code == "worse" else "does not run"
        text = f"{name} {worse} on {move.new.backend} {move.new.backend_version}: {problem_of(error).message}"
        yield HostEvent(host=host.name, stage="back", message=text)
        async for event in _go_back(context, host, move, text):
            yield event
        end(context, state.facts.machine_id, name)
        raise OperationError(
            "upgrade-failed",
            f"{text}; it runs on {move.old.backend_version} again",
            f"`fleet logs {name} --hosts {host.name}` has what the new version printed; both versions stay installed",
            tail=problem_of(error).tail,
        ) from error
    end(context, state.facts.machine_id, name)


async def _prove(
    context: FleetContext, host: Host, facts: HostFacts, move: Move, golden: GoldenBench | None
) -> AsyncGenerator[HostEvent]:
    """READY, an answer to a real question, and on a canary as fast as before, with the same reply."""
    async for event in launch(context, host, move.new):
        yield event
    smoke = smoke_job(facts, move.new)
    if smoke is not None:
        async for event in run_job(context, host, smoke, []):
            yield event
    if golden is not None:
        async for event in golden.after(move):
            yield event


async def _go_back(context: FleetContext, host: Host, move: Move, why: str) -> AsyncGenerator[HostEvent]:
    try:
        async for event in launch(context, host, move.old):
            yield event
    except (OperationError, TransportError) as error:
        message = f"{why}; going back to {move.old.backend_version} failed too: {problem_of(error).message}"
        remedy = f"repeat the command once the cause is gone; see `fleet logs {move.old.name}`"
        raise OperationError("upgrade-failed", message, remedy) from error


async def _fresh(context: FleetContext, host: Host) -> EngineState:
    state = await gather(context, host)
    if isinstance(state, Problem):
        raise OperationError(state.code, state.message, state.remedy)
    return state


async def _remove(
    context: FleetContext, host: Host, planned: PlannedEngines, request: EnginesRequest, done: _Done
) -> AsyncGenerator[HostEvent]:
    """What was shown and still holds: nothing else goes, and nothing that is needed by now."""
    state = await _fresh(context, host)
    fresh = plan_engines(host, state, request, needs_from(catalog(), request)).plan
    if fresh.verdict is EnginesVerdict.REFUSE and fresh.problem is not None:
        raise OperationError(fresh.problem.code, fresh.problem.message, fresh.problem.remedy)
    still = {removal.install_key for removal in fresh.removals}
    for removal in planned.plan.removals:
        if removal.install_key in still:
            yield HostEvent(host=host.name, stage="remove", message=removal.install_key)
            async with context.pool.client(host) as agent:
                done.freed_bytes += await agent.remove_engine(removal.install_key)
            done.removed.append(removal.install_key)
    paths = [leftover.path for leftover in planned.plan.leftovers]
    if paths:
        yield HostEvent(host=host.name, stage="remove", message=f"{len(paths)} leftover(s)")
        async with context.pool.client(host) as agent:
            freed, removed = await agent.collect_leftovers(paths)
        done.freed_bytes += freed
        done.leftovers += removed
