"""Benches that stop as soon as the decision cannot change: one cell after the other, each chosen by what is known then.

What was measured is in the database when the next cell is chosen, and nothing else is remembered: the same command,
after whatever died in the middle, joins what runs and goes on from there.
"""

import json
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from typing import Any

from fleet_controller.benchmarking.cells import PlannedCell
from fleet_controller.choosing.elimination import Run, Stop, next_run
from fleet_controller.choosing.explain import explain
from fleet_controller.domain.base import Problem
from fleet_controller.domain.benches import BenchRequest
from fleet_controller.domain.events import HostEvent
from fleet_controller.fanout import merged
from fleet_controller.operations.bench import HostWork, ended, explained, measure_cell, on_host, outcome_of
from fleet_controller.operations.bench_candidates import Contest, contest, saved_seconds
from fleet_controller.operations.bench_kept import kept_runs
from fleet_controller.operations.bench_plan import StoredBenchPlan, load_bench_plan
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.problems import problem_of
from fleet_controller.operations.threads import in_daemon_thread
from fleet_controller.results.columns import Result
from fleet_controller.transport.errors import TransportError
from fleet_inventory.hosts import Host


async def decide_by_bench(context: FleetContext, plan_id: str) -> AsyncGenerator[HostEvent]:
    """Each host ends with one `done` event that says what was decided there, what ran and what did not have to."""
    plan = load_bench_plan(context, plan_id)
    hosts = context.inventory().hosts
    by_host: dict[str, list[PlannedCell]] = {}
    for cell in plan.cells:
        if cell.identity is not None:
            by_host.setdefault(cell.shown.host, []).append(cell)
    streams = [on_host(context, hosts.get(name), name, plan_id, _work(plan, cells)) for name, cells in by_host.items()]
    async for event in merged(streams):
        yield event


def _work(plan: StoredBenchPlan, cells: Sequence[PlannedCell]) -> HostWork:
    return lambda context, host: _Deciding(context, host, cells, plan.request).run()


class _Deciding:
    """One host's decision under way."""

    def __init__(self, context: FleetContext, host: Host, cells: Sequence[PlannedCell], request: BenchRequest) -> None:
        self._context = context
        self._host = host
        self._cells = cells
        self._request = request
        self._budget = request.budget_seconds or None
        self._broken: dict[str, Problem] = {}
        self._outcomes: list[dict[str, Any]] = []
        self._ran: list[str] = []

    async def run(self) -> AsyncGenerator[HostEvent]:
        started = time.monotonic()
        lost = False
        while True:
            standing = await in_daemon_thread(self._standing)
            left = None if self._budget is None else self._budget - (time.monotonic() - started)
            step = next_run(standing.candidates.values(), standing.faster, left)
            if isinstance(step, Stop) or lost:
                break
            yield self._event(f"next: {step.name}, {step.text}{_rules_out(step)}")
            cell = standing.cells[step.name]
            results: list[Result] = []
            problem: Problem | None = None
            try:
                async for event in measure_cell(self._context, self._host, self._once_more(cell), results):
                    yield event
                self._ran.append(step.name)
            except Exception as error:
                problem = explained(problem_of(error), cell)
                self._broken[step.name] = problem
                lost = isinstance(error, TransportError)
                yield self._event(f"{step.name}: {problem.message}")
            self._outcomes.append(outcome_of(cell, results, problem))
        end = ended(self._host, self._outcomes, list(self._broken.values()))
        stop = step if isinstance(step, Stop) else None
        yield decided(end, standing, stop, self._ran, self._broken)

    def _standing(self) -> Contest:
        return contest(self._context, self._cells, self._request, self._broken)

    def _once_more(self, cell: PlannedCell) -> PlannedCell:
        present, _ = kept_runs(self._context, cell.shown.cell_id)
        return cell.model_copy(update={"ordinals": (present + 1,)})

    def _event(self, message: str) -> HostEvent:
        return HostEvent(host=self._host.name, stage="bench", message=message)


def _rules_out(step: Run) -> str:
    return f"; it may rule out {', '.join(step.rules_out)}" if step.rules_out else ""


def _runs_of(standing: Contest, name: str) -> int:
    return standing.candidates[name].runs if name in standing.candidates else 0


def decided(
    end: HostEvent, standing: Contest, stop: Stop | None, ran: Sequence[str], broken: Collection[str] = ()
) -> HostEvent:
    """The end of a host with its decision: what won and why, what never ran, and the time that this saved.

    What is in `broken` could not be measured, which saves nothing.
    """
    needless = {name: cell for name, cell in standing.cells.items() if name not in ran and not _runs_of(standing, name)}
    spared = [cell for name, cell in needless.items() if name not in broken]
    saved = saved_seconds(spared, [standing.cells[name] for name in dict.fromkeys(ran)])
    chosen = standing.decision.chosen
    by = {item.name: item.by for item in standing.out}
    decision = {
        "goal": standing.goal.value,
        "why": stop.why.value if stop is not None else "lost",
        "text": stop.text if stop is not None else "the host was lost",
        "chosen": chosen.option.name if chosen is not None else None,
        "leaders": list(stop.leaders) if stop is not None else [],
        "ran": [{"name": name, "runs": ran.count(name)} for name in dict.fromkeys(ran)],
        "not_run": [
            {
                "name": name,
                "better": by.get(name, ""),
                "held_back": standing.held.get(name, ""),
                "seconds": cell.run_seconds,
            }
            for name, cell in needless.items()
        ],
        "saved_seconds": saved,
        "explanation": explain(standing.decision),
    }
    result = json.loads(end.result_json) if end.result_json else {"cells": []}
    message = f"{decision['text']}; {len(ran)} runs"
    return end.model_copy(update={"result_json": json.dumps({**result, "decision": decision}), "message": message})
