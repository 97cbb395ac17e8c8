"""Carrying a rollout out: a deploy's plan on many hosts, in its order, with every change kept before the next act.

Whoever carries it out may die at any moment: what is on the hosts goes on, and whoever continues asks each host that
was under way what it runs. Pausing and aborting are wishes in the database, so that any terminal can say them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from fleet_controller.domain.base import Frozen, Problem
from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.plan import PlanAction
from fleet_controller.domain.rollouts import Before, HostPhase, Rollout, RolloutHost, RolloutState, Strategy
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.deploy import TO_RUN, deploy_host, prepare_ahead
from fleet_controller.operations.planning import PlannedHost, StoredPlan, load_plan, plan_deploy
from fleet_controller.operations.problems import OperationError, problem_of
from fleet_controller.operations.pull_deploy import pull_shared_files
from fleet_controller.operations.restoring import before_of, gate_of, goes_on, restore
from fleet_controller.rolling.next_step import interrupted, next_step
from fleet_controller.rolling.store import RolloutStore
from fleet_controller.rolling.waves import WaveError, default_canaries, waves_of
from fleet_controller.transport.errors import HostUnreachable

POLL_SECONDS = 0.5
# Codes of a host that did not answer at all: it is away, and nothing was changed there.
AWAY = frozenset({HostUnreachable.code})


class RolloutWish(Frozen):
    """The order as a user asked for it; "" and None mean: as usual. `canary` "none" asks for none."""

    canary: str = ""
    strategy: Strategy = Strategy()


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
    same = _same_under_way(context, store, plan)
    if same is not None:
        return same
    earlier = _demand_free(store, names)
    service = next(item.shown.service.name for item in changing if item.shown.service is not None)
    hosts = [RolloutHost(host=name, wave=waves[name], before=_inherited(earlier, name, service)) for name in names]
    hosts += _done_before(earlier, service, names, [item.shown.host for item in plan.hosts])
    rollout = Rollout(
        number=0, plan_id=plan.plan_id, title=f"deploy {service}", service=service, strategy=strategy,
        hosts=tuple(hosts),
    )  # fmt: skip
    return store.create(rollout, plan.model_dump_json(), supersedes=earlier)


def _canaries(plan: StoredPlan, changing: list[PlannedHost], wish: RolloutWish) -> tuple[str, ...]:
    """Those of the wish, else the first host of each backend: a build for CUDA says nothing about one for Metal.

    A wanted canary that has the service already has proven it. Raises OperationError for one that the plan lacks.
    """
    kinds = {item.shown.host: item.shown.backend for item in changing}
    reachable = [item.shown.host for item in changing if item.shown.action in TO_RUN]
    chosen = default_canaries(reachable, wish.canary, kinds)
    planned = [item.shown.host for item in plan.hosts]
    unknown = [name for name in chosen if name not in planned]
    if unknown:
        message = f"--canary {unknown[0]} is none of the hosts"
        raise OperationError("usage", message, f"one of: {', '.join(planned)}", usage=True)
    return tuple(name for name in chosen if name in reachable)


def _same_under_way(context: FleetContext, store: RolloutStore, plan: StoredPlan) -> Rollout | None:
    """A rollout of the same request that this process is at: the same command once more watches it."""
    for other in store.unfinished():
        if context.running.digest_of(key_of(other.number)) is None:
            continue
        if StoredPlan.model_validate_json(store.plan(other.number)).request == plan.request:
            return other
    return None


def key_of(number: int) -> tuple[str, str]:
    """Under which a rollout is known among the work of this process."""
    return "rollout", str(number)


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


def _inherited(earlier: list[Rollout], name: str, service: str) -> Before | None:
    """What ran before the first of several rollouts that were cut off: an undo goes back to that."""
    for other in reversed(earlier):
        for host in other.hosts:
            if host.host == name and host.phase.touched and other.service == service and host.before is not None:
                return host.before
    return None


def _done_before(earlier: list[Rollout], service: str, names: list[str], planned: list[str]) -> list[RolloutHost]:
    """Hosts that a rollout which was cut off has changed already: part of this one, for an undo."""
    found: dict[str, RolloutHost] = {}
    for other in reversed(earlier):
        if other.service != service:
            continue
        for host in other.of(HostPhase.CHANGED):
            if host.host not in names and host.host in planned:
                found.setdefault(host.host, host.model_copy(update={"wave": 0}))
    return list(found.values())


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
        if rollout.state is not RolloutState.RUNNING:  # somebody ended it a moment ago
            return
        rollout = interrupted(rollout)
        store.save(rollout)
        plan = StoredPlan.model_validate_json(store.plan(number))
        async for event in _Carrier(context, store, rollout, plan).run():
            yield event


@dataclass
class _Carrier:
    """One run of a rollout in this process."""

    context: FleetContext
    store: RolloutStore
    rollout: Rollout
    plan: StoredPlan
    events: asyncio.Queue[HostEvent] = field(default_factory=asyncio.Queue)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    ahead: list[asyncio.Task[None]] = field(default_factory=list)

    async def run(self) -> AsyncGenerator[HostEvent]:
        try:
            async for event in self._pull_first():
                yield event
            self._prepare_others()
            while True:
                end = self._advance()
                if end is not None:
                    break
                async for event in self._some_events():
                    yield event
            for event in self._rest(*end):
                yield event
        finally:
            for task in (*self.tasks.values(), *self.ahead):
                task.cancel()
            await asyncio.gather(*self.tasks.values(), *self.ahead, return_exceptions=True)

    def _advance(self) -> tuple[RolloutState, str] | None:
        """Begin what comes next; the end, where nothing is under way and nothing more may begin."""
        wish = self.store.wanted(self.rollout.number)
        step = next_step(self.rollout)
        for name in step.begin if wish is None else ():
            self._set(self._host(name).model_copy(update={"phase": HostPhase.CHANGING}))
            self.tasks[name] = asyncio.create_task(self._follow(name))
        if self.tasks:
            return None
        if step.state is not None:
            return self._end(step.state, step.reason)
        return self._end(wish, "as asked for") if wish is not None else None

    def _end(self, state: RolloutState, reason: str) -> tuple[RolloutState, str]:
        self.rollout = self.rollout.model_copy(update={"state": state, "reason": reason})
        self.store.set_state(self.rollout.number, state, reason)
        return state, reason

    async def _some_events(self) -> AsyncGenerator[HostEvent]:
        """Those that are there, or come within a moment: wishes are looked for in between."""
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                yield await self.events.get()
        while not self.events.empty():
            yield self.events.get_nowait()

    async def _pull_first(self) -> AsyncGenerator[HostEvent]:
        """Model files that several hosts lack come from the hub once: that changes nothing that runs."""
        planned = [self._planned(host.host) for host in self.rollout.of(HostPhase.WAITING)]
        async for event in pull_shared_files(self.context, [item for item in planned if item is not None]):
            yield event

    def _prepare_others(self) -> None:
        """Installs and downloads of later waves go on while the canaries are proven: they change nothing that runs."""
        first = min((host.wave for host in self.rollout.of(HostPhase.WAITING)), default=0)
        for host in self.rollout.of(HostPhase.WAITING):
            planned = self._planned(host.host)
            if host.wave > first and planned is not None and planned.deployment.prepare is not None:
                self.ahead.append(asyncio.create_task(self._ahead(host, planned)))

    async def _ahead(self, host: RolloutHost, planned: PlannedHost) -> None:
        known = self.context.inventory().hosts.get(host.host)
        if known is None:
            return
        async for event in prepare_ahead(self.context, known, planned):
            self.events.put_nowait(event)
        note = f"prepared; waits for wave {host.wave + 1} of {self.rollout.waves}"
        self.events.put_nowait(HostEvent(host=host.host, stage="waiting", message=note))

    async def _follow(self, name: str) -> None:
        """One host from its beginning to its phase; its last event comes after that is kept."""
        last = HostEvent(host=name, done=True, problem=Problem(code="internal", message="it ended without a word"))
        try:
            async for event in self._change(name):
                if event.done:
                    last = event
                else:
                    self.events.put_nowait(event)
        except Exception as error:
            last = HostEvent(host=name, stage="deploy", done=True, problem=problem_of(error))
        self._set(self._host(name).model_copy(update=_ended(last)))
        del self.tasks[name]
        self.events.put_nowait(last)

    async def _change(self, name: str) -> AsyncGenerator[HostEvent]:
        host = self.context.inventory().hosts.get(name)
        planned = self._planned(name) or await self._planned_now(name)
        if host is None or planned.shown.problem is not None:
            gone = Problem(code="no-such-host", message="the host is no longer in hosts.yaml", remedy="fleet hosts")
            yield HostEvent(host=name, done=True, problem=planned.shown.problem or gone)
            return
        before = self._host(name).before or await before_of(self.context, host, self.rollout.service)
        self._set(self._host(name).model_copy(update={"before": before}))
        is_canary = name in self.rollout.strategy.canaries
        gate = gate_of(self.context, host, self.rollout.strategy, before, planned) if is_canary else None
        if gate is not None:
            async for event in gate.measure_before():
                yield event
        async for event in deploy_host(self.context, host, planned, self.plan):
            if not event.done:
                yield event
                continue
            problem = event.problem
        last = event
        if problem is None and gate is not None:
            try:
                async for event in gate.measure_after():
                    yield event
            except OperationError as error:
                problem = error.problem
        if problem is not None and problem.code not in AWAY and before.running:
            async for event in self._go_back(name, before, problem):
                last = event
                if not event.done:
                    yield event
        yield last

    async def _go_back(self, name: str, before: Before, problem: Problem) -> AsyncGenerator[HostEvent]:
        """What ran before runs again: a failed change is no outage. The last event has the problem and what became.

        What never ended is left alone, with what the host tells of its successor.
        """
        host = self.context.inventory().hosts[name]
        try:
            if await goes_on(self.context, host, self.rollout.service, before):
                yield HostEvent(host=name, stage="back", done=True, problem=_told(problem, "what ran before goes on"))
                return
            async for event in restore(self.context, host, self.rollout.service, before):
                yield event
            note = "what ran before runs again"
        except Exception as error:
            note = f"going back failed, too: {problem_of(error).message}"
        yield HostEvent(host=name, stage="back", done=True, problem=_told(problem, note))

    async def _planned_now(self, name: str) -> PlannedHost:
        """For a host that was away when the plan was made."""
        request = self.plan.request.model_copy(update={"pattern": name})
        made = await plan_deploy(self.context, request)
        return made.hosts[0]

    def _planned(self, name: str) -> PlannedHost | None:
        """None where the plan could say nothing of the host."""
        found = next((item for item in self.plan.hosts if item.shown.host == name), None)
        return found if found is not None and found.shown.action in (*TO_RUN, PlanAction.KEEP) else None

    def _rest(self, state: RolloutState, reason: str) -> list[HostEvent]:
        """A last event for every host that was not begun, and what is done with the rollout now."""
        number = self.rollout.number
        remedy = f"fleet rollout resume {number}, or fleet rollout undo {number}"
        why = (
            f"not changed: {reason}" if state is RolloutState.STOPPED else f"not changed: the rollout is {state.value}"
        )
        problem = Problem(code=f"rollout-{state.value}", message=why, remedy=remedy)
        waiting = self.rollout.of(HostPhase.WAITING)
        return [HostEvent(host=host.host, stage="rollout", done=True, problem=problem) for host in waiting]

    def _host(self, name: str) -> RolloutHost:
        return next(host for host in self.rollout.hosts if host.host == name)

    def _set(self, changed: RolloutHost) -> None:
        """First on the disk, then in memory."""
        self.store.set_host(self.rollout.number, changed)
        hosts = tuple(changed if host.host == changed.host else host for host in self.rollout.hosts)
        self.rollout = self.rollout.model_copy(update={"hosts": hosts})


def _told(problem: Problem, note: str) -> Problem:
    return problem.model_copy(update={"message": f"{problem.message}; {note}"})


def _ended(event: HostEvent) -> dict[str, object]:
    if event.problem is None:
        phase = HostPhase.CHANGED
    else:
        phase = HostPhase.AWAY if event.problem.code in AWAY else HostPhase.FAILED
    return {"phase": phase, "problem": event.problem, "changed_unix_ms": int(time.time() * 1000)}
