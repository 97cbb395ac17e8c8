"""Running a bench's plan: all hosts at once, a device's cells in turn, each run a durable job of its agent.

A run is named by its cell and its number. So the same command, after whatever died in the middle, joins what runs,
takes in what has ended meanwhile, and repeats nothing that is kept.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fleet_controller.benchmarking.cells import (
    PlannedCell,
    device_samples_of,
    results_of,
    run_id,
    run_of_result,
)
from fleet_controller.benchmarking.devices import overlap
from fleet_controller.benchmarking.parsers import BenchOutputError
from fleet_controller.domain.base import Problem
from fleet_controller.domain.benches import CellAction
from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.jobs import JobState, JobStatus
from fleet_controller.domain.steps import JobSpec
from fleet_controller.fanout import merged
from fleet_controller.operations.bench_plan import load_bench_plan
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.jobs import follow_job, is_attempt_of, run_job
from fleet_controller.operations.problems import OperationError, problem_of
from fleet_controller.results.columns import Metric, Result, Status
from fleet_controller.results.store import save_results
from fleet_controller.transport.errors import TransportError
from fleet_inventory.hosts import Host

SHOWN_METRICS = (Metric.PREFILL, Metric.DECODE, Metric.ENERGY)


class CellVoid(OperationError):
    """Every run of a cell was disturbed."""


async def bench(context: FleetContext, plan_id: str) -> AsyncGenerator[HostEvent]:
    """Run the plan's cells; each host ends with one `done` event that says how every cell of it came out.

    Leaving detaches: in a resident controller the work goes on, and the same plan joins it again.
    """
    plan = load_bench_plan(context, plan_id)
    hosts = context.inventory().hosts
    by_host: dict[str, list[PlannedCell]] = {}
    for cell in plan.cells:
        if cell.shown.action is CellAction.RUN:
            by_host.setdefault(cell.shown.host, []).append(cell)
    streams = [on_host(context, hosts.get(name), name, plan_id, _cells_of(cells)) for name, cells in by_host.items()]
    async for event in merged(streams):
        yield event


HostWork = Callable[[FleetContext, Host], AsyncGenerator[HostEvent]]


def _cells_of(cells: list[PlannedCell]) -> HostWork:
    return lambda context, host: _cells(context, host, cells)


async def on_host(
    context: FleetContext, host: Host | None, name: str, plan_id: str, work: HostWork
) -> AsyncGenerator[HostEvent]:
    """One host's part of a plan: started, or joined where it is under way."""
    if host is None:
        gone = Problem(code="no-such-host", message="the host is no longer in hosts.yaml", remedy="repeat the command")
        yield HostEvent(host=name, stage="bench", done=True, problem=gone)
        return
    async for event in context.running.join((name, "bench", plan_id), plan_id, lambda: work(context, host)):
        yield event


async def _cells(context: FleetContext, host: Host, cells: list[PlannedCell]) -> AsyncGenerator[HostEvent]:
    """Cells on other devices side by side, those of one device in the order of the plan."""
    work = _HostCells(context, host, cells)
    async for event in merged([work.one(position) for position in range(len(cells))]):
        yield event
    yield ended(host, [work.outcomes[position] for position in sorted(work.outcomes)], work.problems)


class _HostCells:
    """The cells of one host. One that fails costs the others nothing; a lost host costs all that have not begun.

    The agent's leases keep measurements of different commands apart; those of one command are not even sent before
    their turn.
    """

    def __init__(self, context: FleetContext, host: Host, cells: list[PlannedCell]) -> None:
        self.outcomes: dict[int, dict[str, Any]] = {}
        self.problems: list[Problem] = []
        self._context, self._host, self._cells = context, host, cells
        self._over = [asyncio.Event() for _ in cells]
        self._lost = False

    async def one(self, position: int) -> AsyncGenerator[HostEvent]:
        """One cell, once all before it that want one of its devices are over."""
        cell = self._cells[position]
        try:
            for other, over in zip(self._cells[:position], self._over, strict=False):
                if overlap(other.gpu_indices, cell.gpu_indices):
                    await over.wait()
            if not self._lost:
                async for event in self._measured(position, cell):
                    yield event
        finally:
            self._over[position].set()

    async def _measured(self, position: int, cell: PlannedCell) -> AsyncGenerator[HostEvent]:
        results: list[Result] = []
        problem: Problem | None = None
        place = f"[{position + 1}/{len(self._cells)}] " if len(self._cells) > 1 else ""
        try:
            async for event in measure_cell(self._context, self._host, cell, results):
                yield event.model_copy(update={"message": f"{place}{event.message}"})
        except Exception as error:
            problem = explained(problem_of(error), cell)
            self.problems.append(problem)
            self._lost = isinstance(error, TransportError)
            yield HostEvent(host=self._host.name, stage="bench", message=f"{name_of(cell)}: {problem.message}")
        self.outcomes[position] = outcome_of(cell, results, problem)


async def measure_cell(
    context: FleetContext, host: Host, cell: PlannedCell, kept: list[Result]
) -> AsyncGenerator[HostEvent]:
    """Every run of a cell that is still to do; the rows are kept, and added to `kept`. Raises what went wrong."""
    for position, ordinal in enumerate(cell.ordinals, start=1):
        which = f" (run {position} of {len(cell.ordinals)})" if len(cell.ordinals) > 1 else ""
        yield HostEvent(host=host.name, stage="bench", message=f"{name_of(cell)}{which}")
        async for event in _run(context, host, cell, ordinal, kept):
            yield event
        figures = [result for result in kept if result.run_id == run_id(cell.shown.cell_id, ordinal)]
        yield HostEvent(host=host.name, stage="bench", message=f"{name_of(cell)}{which}: {_text(figures)}")


async def _run(
    context: FleetContext, host: Host, cell: PlannedCell, ordinal: int, kept: list[Result]
) -> AsyncGenerator[HostEvent]:
    """One run: the job under way is joined, one that ended well is taken in, else it is started (again)."""
    job = cell.job(ordinal)
    async with context.pool.client(host) as agent:
        known = await agent.list_jobs()
    ended = ended_well(known, job)
    if ended is not None:
        found: list[dict[str, Any]] = []
        async for event in follow_job(context, host, ended.job_id, job.steps, found):
            if event.done_units is None:
                yield event
        try:
            kept += _keep(context, cell, ended.job_id, ordinal, _measured(found, cell))
            return
        except (BenchOutputError, CellVoid):  # what an earlier command got is of no use: measure
            pass
    answers: list[dict[str, Any]] = []
    async for event in run_job(context, host, job, answers):
        yield event
    async with context.pool.client(host) as agent:
        last = [status.job_id for status in await agent.list_jobs() if is_attempt_of(status.job_id, job.job_id)]
    kept += _keep(context, cell, last[-1] if last else job.job_id, ordinal, _measured(answers, cell))


def ended_well(known: tuple[JobStatus, ...], job: JobSpec) -> JobStatus | None:
    attempts = [status for status in known if is_attempt_of(status.job_id, job.job_id)]
    if any(not status.state.final for status in attempts):
        return None
    succeeded = [status for status in attempts if status.state is JobState.SUCCEEDED]
    return succeeded[-1] if succeeded else None


def _measured(answers: list[dict[str, Any]], cell: PlannedCell) -> dict[str, Any]:
    """The result of the step that measured, with the version that the engine's install told. Or BenchOutputError."""
    found = [answer for answer in answers if "outcome" in answer]
    if not found:
        raise BenchOutputError("bench-incomplete", "the job ended without a measurement")
    key = cell.identity.install_key if cell.identity is not None else ""
    installs = [answer["install"] for answer in answers if isinstance(answer.get("install"), dict)]
    versions = [str(install.get("version", "")) for install in installs if install.get("install_key") == key]
    return {**found[-1], "engine_version": versions[-1] if versions else ""}


def _keep(context: FleetContext, cell: PlannedCell, job_id: str, ordinal: int, result: dict[str, Any]) -> list[Result]:
    """The rows, on disk when this returns: all of them or none. A void cell is kept as such, and raises CellVoid."""
    run = run_id(cell.shown.cell_id, ordinal)
    void = result["outcome"] == "contaminated"
    if void:
        run = f"{job_id}-void"
    results = results_of(cell, job_id, run, result)
    save_results(context.database, results, run_of_result(cell, job_id, run, result), device_samples_of(run, result))
    if void:
        times = len(result.get("void_runs", ()))
        message = f"contaminated: all {times} runs were disturbed; the last one: {result.get('cause')}"
        raise CellVoid("contaminated", message, "repeat it when the host is quiet; --when-idle waits for that")
    return results


def explained(problem: Problem, cell: PlannedCell) -> Problem:
    """llama-benchy's own last line speaks of the network where it found no tokenizer on the host."""
    told = " ".join((problem.message, *problem.tail))
    if cell.shown.client != "llama-benchy" or problem.code != "tool-failed" or "huggingface.co" not in told:
        return problem
    remedy = "--tokenizer FOLDER (on the host, with tokenizer.json) or --tokenizer OWNER/NAME of a hub that it reaches"
    message = f"llama-benchy found no tokenizer for {cell.shown.model} on the host, and could not fetch one"
    return problem.model_copy(update={"message": message, "remedy": remedy})


def name_of(cell: PlannedCell) -> str:
    shown = cell.shown
    return " ".join(part for part in (shown.model, shown.quantization, shown.backend, shown.client) if part)


def _text(results: list[Result]) -> str:
    figures = [result for result in results if result.test_kind in SHOWN_METRICS and result.mean is not None]
    return ", ".join(f"{result.test} {_figure(result)} {result.unit}" for result in figures)


def _figure(result: Result) -> str:
    mean = result.mean or 0.0
    digits = 1 if mean >= 10 else 2
    deviation = f" ± {result.deviation:,.{digits}f}" if result.deviation is not None else ""
    return f"{mean:,.{digits}f}{deviation}"


def outcome_of(cell: PlannedCell, results: list[Result], problem: Problem | None) -> dict[str, Any]:
    shown = cell.shown
    rows = [
        {**result.model_dump(mode="json", exclude={"tool_fields"}), "test": result.test, "unit": result.unit}
        for result in results
        if result.status is Status.MEASURED
    ]
    return {
        "cell_id": shown.cell_id,
        "model": shown.model,
        "quantization": shown.quantization,
        "backend": shown.backend,
        "backend_version": shown.backend_version,
        "client": shown.client,
        "state": "measured" if problem is None else "contaminated" if problem.code == "contaminated" else "failed",
        "problem": problem.model_dump(mode="json") if problem is not None else None,
        "foreign": shown.foreign,
        "rows": rows,
    }


def ended(host: Host, outcomes: list[dict[str, Any]], problems: list[Problem]) -> HostEvent:
    measured = sum(outcome["state"] == "measured" for outcome in outcomes)
    problem = problems[0] if problems else None
    if problem is not None and len(outcomes) > 1:
        message = f"{len(problems)} of {len(outcomes)} cells were not measured; the first: {problem.message}"
        problem = problem.model_copy(update={"message": message})
    return HostEvent(
        host=host.name,
        stage="bench",
        message=f"{measured} of {len(outcomes)} cells measured",
        done=True,
        problem=problem,
        result_json=json.dumps({"cells": outcomes}),
    )
