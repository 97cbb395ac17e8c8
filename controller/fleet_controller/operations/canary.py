"""Upgrades that one host proves for the others: which one that is, and the order that follows."""

from collections.abc import AsyncGenerator, Callable, Sequence

from fleet_controller.domain.base import Problem
from fleet_controller.domain.engines import EnginesAction, EnginesRequest, EnginesVerdict
from fleet_controller.domain.events import HostEvent
from fleet_controller.fanout import merged
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.golden import golden_commands
from fleet_controller.operations.problems import OperationError, problem_of
from fleet_controller.planning.engine_state import EngineState, PlannedEngines, stopped
from fleet_inventory.hosts import Host

MOST_THRESHOLD = 0.9


def check_golden(request: EnginesRequest) -> None:
    """Raises OperationError (usage) for wishes that contradict each other."""
    if not request.golden_bench:
        if request.canary:
            raise OperationError("usage", "--canary goes with --golden-bench", usage=True)
        return
    if request.action is not EnginesAction.UPGRADE or request.install_only:
        raise OperationError("usage", "--golden-bench measures models that move: not with --install-only", usage=True)
    if not 0 < request.golden_threshold <= MOST_THRESHOLD:
        message = f"--threshold lies above 0 % and not above {MOST_THRESHOLD:.0%}".replace("%", " %").replace(
            "  %", " %"
        )
        raise OperationError("usage", message, usage=True)


def with_canary(
    context: FleetContext,
    hosts: Sequence[Host],
    states: Sequence[EngineState | Problem],
    planned: tuple[PlannedEngines, ...],
    request: EnginesRequest,
) -> tuple[PlannedEngines, ...]:
    """The plans with one marked as canary, and what is measured there. Raises OperationError where none can be one."""
    number = _chosen(context, hosts, states, planned, request)
    if number is None:
        return planned
    item, state, host = planned[number], states[number], hosts[number]
    assert isinstance(state, EngineState)
    try:
        commands, paused = golden_commands(context, host, state.facts, state.services, item.moves)
    except OperationError as error:
        return _stopped_all(planned, number, problem_of(error))
    limit = f"{request.golden_threshold:.3g}"
    notes = [f"the golden bench pauses {', '.join(paused)}"] if paused else []
    reason = f"{item.plan.reason}; canary: measured before and after, refused where {float(limit):.1%} slower"
    plan = item.plan.model_copy(
        update={
            "reason": reason.replace("%", " %"),
            "commands": (*item.plan.commands, *commands),
            "warnings": (*item.plan.warnings, *notes),
        }
    )
    marked = item.model_copy(update={"plan": plan, "canary": True})
    return (*planned[:number], marked, *planned[number + 1 :])


def _chosen(
    context: FleetContext,
    hosts: Sequence[Host],
    states: Sequence[EngineState | Problem],
    planned: tuple[PlannedEngines, ...],
    request: EnginesRequest,
) -> int | None:
    """The place of the canary; None where nothing changes, or where the canary proved this version before."""
    if not any(item.plan.verdict is EnginesVerdict.CHANGE for item in planned):
        return None
    names = [host.name for host in hosts]
    if request.canary and request.canary not in names:
        message = f"--canary {request.canary} is none of the hosts: {', '.join(names)}"
        raise OperationError("usage", message, "name one that --hosts has, too", usage=True)
    fitting = [number for number, item in enumerate(planned) if item.moves]
    if not request.canary and fitting:
        return fitting[0]
    if request.canary:
        number = names.index(request.canary)
        if number in fitting or planned[number].plan.verdict in (EnginesVerdict.FAIL, EnginesVerdict.REFUSE):
            return number if number in fitting else None
        state = states[number]
        if isinstance(state, EngineState) and is_proven(context, state.facts.machine_id, planned[number]):
            return None
    where = f"on {request.canary}" if request.canary else "on these hosts"
    message = f"no model of {request.backend} is to be moved {where}: there is nothing to compare"
    raise OperationError("no-canary", message, "deploy a model there first, or leave --golden-bench out", usage=True)


def _stopped_all(planned: tuple[PlannedEngines, ...], canary: int, problem: Problem) -> tuple[PlannedEngines, ...]:
    """Nobody changes where the canary cannot be measured."""
    name = planned[canary].plan.host
    waits = Problem(code="canary-failed", message=f"canary {name} cannot be measured", remedy="see there")
    return tuple(
        stopped(item.plan.host, EnginesVerdict.REFUSE, problem if number == canary else waits)
        if item.plan.verdict is EnginesVerdict.CHANGE
        else item
        for number, item in enumerate(planned)
    )


async def canary_first(
    chosen: Sequence[PlannedEngines], run: Callable[[PlannedEngines], AsyncGenerator[HostEvent]]
) -> AsyncGenerator[HostEvent]:
    """The canary's work to its end, then all others at once; they stay as they are where it failed."""
    failed = ""
    for item in (one for one in chosen if one.canary):
        async for event in run(item):
            yield event
            failed = item.plan.host if event.done and event.problem is not None else failed
    others = [item for item in chosen if not item.canary]
    if failed:
        message = f"not upgraded, since canary {failed} failed"
        problem = Problem(code="canary-failed", message=message, remedy="both versions stay installed there; see above")
        for item in others:
            yield HostEvent(host=item.plan.host, stage="engines", done=True, problem=problem)
        return
    async for event in merged([run(item) for item in others]):
        yield event


def note_proven(context: FleetContext, machine_id: str, item: PlannedEngines) -> None:
    """A repeated command goes on with the other hosts, and measures nothing again."""
    context.database.save_plan(_proven_id(machine_id, item), "{}")


def is_proven(context: FleetContext, machine_id: str, item: PlannedEngines) -> bool:
    return context.database.load_plan(_proven_id(machine_id, item)) is not None


def _proven_id(machine_id: str, item: PlannedEngines) -> str:
    return f"golden-passed-{machine_id}-{item.plan.install_key}"
