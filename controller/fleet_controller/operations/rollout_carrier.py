"""One run of a rollout in this process: what comes next is begun, what happens is kept, and told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field

from fleet_controller.domain.base import Problem
from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.plan import PlanAction
from fleet_controller.domain.rollouts import Before, HostPhase, Rollout, RolloutHost, RolloutState
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.deploy import TO_RUN, deploy_host, prepare_ahead
from fleet_controller.operations.planning import PlannedHost, StoredPlan, plan_deploy
from fleet_controller.operations.problems import OperationError, problem_of
from fleet_controller.operations.pull_deploy import pull_shared_files
from fleet_controller.operations.restoring import before_of, gate_of, goes_on, restore, taken_over
from fleet_controller.rolling.next_step import next_step
from fleet_controller.rolling.store import RolloutStore
from fleet_controller.transport.errors import HostUnreachable

POLL_SECONDS = 0.5
# Codes of a host that did not answer at all: it is away, and nothing was changed there.
AWAY = frozenset({HostUnreachable.code})


def key_of(number: int) -> tuple[str, str]:
    """Under which a rollout is known among the work of this process."""
    return "rollout", str(number)


@dataclass
class Carrier:
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
            if not self._is_to_end():
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
        """Model files that several hosts lack come from the hub once: that changes nothing that runs.

        A pause or an abort ends it there; a resumed rollout goes on with what has arrived.
        """
        planned = [self._planned(host.host) for host in self.rollout.of(HostPhase.WAITING)]
        found = [item for item in planned if item is not None]
        async for event in pull_shared_files(self.context, found, self._is_to_end):
            yield event

    def _is_to_end(self) -> bool:
        return self.store.wanted(self.rollout.number) is not None

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
        if last.problem is not None and last.problem.code in AWAY:
            last = last.model_copy(update={"problem": self._away(name, last.problem)})
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

        What never ended is left alone, with what the host tells of its successor; so is what somebody else has stopped
        or deployed meanwhile.
        """
        host = self.context.inventory().hosts[name]
        try:
            if await taken_over(self.context, host, self.rollout.service, problem):
                yield HostEvent(host=name, stage="back", done=True, problem=_told(problem, "it is left so"))
                return
            if await goes_on(self.context, host, self.rollout.service, before):
                yield HostEvent(host=name, stage="back", done=True, problem=_told(problem, "what ran before goes on"))
                return
            async for event in restore(self.context, host, self.rollout.service, before):
                yield event
            note = "what ran before runs again"
        except Exception as error:
            note = f"going back failed, too: {problem_of(error).message}"
        yield HostEvent(host=name, stage="back", done=True, problem=_told(problem, note))

    def _away(self, name: str, problem: Problem) -> Problem:
        """What becomes of a host that does not answer, in the words of its problem."""
        begun = self._host(name).before is not None
        note = "what was begun there goes on by itself" if begun else "nothing was changed there"
        resume = f"fleet rollout resume {self.rollout.number}"
        strategy = self.rollout.strategy
        if strategy.catch_up and name not in strategy.canaries:
            remedy = f"a resident controller changes it when it is back; or then: {resume}"
        else:
            remedy = f"it counts as failed; when it is back: {resume}"
        return _told(problem, note).model_copy(update={"remedy": remedy})

    async def _planned_now(self, name: str) -> PlannedHost:
        """For a host that was away when the plan was made. Kept with the plan: an undo knows it again by that."""
        request = self.plan.request.model_copy(update={"pattern": name})
        (made,) = (await plan_deploy(self.context, request)).hosts
        if made.shown.service is not None:
            others = (item for item in self.plan.hosts if item.shown.host != name)
            self.plan = self.plan.model_copy(update={"hosts": (*others, made)})
            self.store.set_plan(self.rollout.number, self.plan.model_dump_json())
        return made

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
