"""Running a plan of evaluations: hosts at once, a host's cells in turn, each a durable job of its agent.

A job is named by what it asks, and answers lie on the host by what was asked: whatever died in the middle, the same
command joins what runs, takes in what has ended, and has no question asked twice.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator
from typing import Any

from fleet_controller.domain.base import Problem
from fleet_controller.domain.benches import CellAction
from fleet_controller.domain.evals import EvalRequest
from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.steps import JobSpec
from fleet_controller.evaluating.asking import asking_of, protocol_named, run_id_of
from fleet_controller.evaluating.dataset import DatasetError
from fleet_controller.evaluating.perplexity import PerplexityError
from fleet_controller.evaluating.report import comparisons
from fleet_controller.fanout import merged
from fleet_controller.operations.bench import ended_well
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.eval_data import fetch, harness, kept_corpus, kept_dataset
from fleet_controller.operations.eval_keys import key_of, row_of_run
from fleet_controller.operations.eval_model import Judged, PlannedEval
from fleet_controller.operations.eval_perplexity import perplexity_job
from fleet_controller.operations.eval_plan import load_eval_plan
from fleet_controller.operations.eval_rows import perplexity_rows, question_row
from fleet_controller.operations.eval_steps import evaluate_step
from fleet_controller.operations.jobs import follow_job, run_job
from fleet_controller.operations.planning import gather_state
from fleet_controller.operations.problems import OperationError, problem_of
from fleet_controller.results.quality import TITLES, QualityRow, load_quality, save_quality
from fleet_controller.transport.errors import TransportError
from fleet_inventory.hosts import Host

PERPLEXITY_KEY_HEX_DIGITS = 16


async def evaluate(context: FleetContext, plan_id: str) -> AsyncGenerator[HostEvent]:
    """Run the plan's cells; each host ends with one `done` event that says how every cell of it came out.

    Leaving detaches: in a resident controller the work goes on, and the same plan joins it again.
    """
    plan = load_eval_plan(context, plan_id)
    hosts = context.inventory().hosts
    by_host: dict[str, list[PlannedEval]] = {}
    for cell in plan.cells:
        if cell.shown.action is CellAction.RUN:
            by_host.setdefault(cell.shown.host, []).append(cell)
    fetching = asyncio.Lock()
    streams = [
        _on_host(context, hosts.get(name), name, cells, plan_id, plan.request, fetching)
        for name, cells in by_host.items()
    ]
    async for event in merged(streams):
        yield event


async def _on_host(
    context: FleetContext,
    host: Host | None,
    name: str,
    cells: list[PlannedEval],
    plan_id: str,
    request: EvalRequest,
    fetching: asyncio.Lock,
) -> AsyncGenerator[HostEvent]:
    if host is None:
        gone = Problem(code="no-such-host", message="the host is no longer in hosts.yaml", remedy="repeat the command")
        yield HostEvent(host=name, stage="evaluate", done=True, problem=gone)
        return

    def start() -> AsyncGenerator[HostEvent]:
        return _cells(context, host, cells, request, fetching)

    async for event in context.running.join((name, "eval", plan_id), plan_id, start):
        yield event


async def _cells(
    context: FleetContext, host: Host, cells: list[PlannedEval], request: EvalRequest, fetching: asyncio.Lock
) -> AsyncGenerator[HostEvent]:
    """One cell that fails costs the others nothing; one lost host costs all that are left."""
    outcomes: list[dict[str, Any]] = []
    problems: list[Problem] = []
    # Files compared with one base are one job.
    groups = [cells] if request.perplexity else [[cell] for cell in cells]
    for group in groups:
        rows: list[QualityRow] = []
        problem: Problem | None = None
        try:
            async for event in _data(context, host, request, fetching):
                yield event
            run = _perplexity if request.perplexity else _questions
            async for event in run(context, host, group, request, rows):
                yield event
        except Exception as error:
            problem = _problem(error)
            problems.append(problem)
            yield HostEvent(host=host.name, stage="evaluate", message=f"{_name(group[0])}: {problem.message}")
            if isinstance(error, TransportError):
                outcomes.append(_outcome(context, group, rows, problem))
                break
        outcomes.append(_outcome(context, group, rows, problem))
    done = sum(outcome["problem"] is None for outcome in outcomes)
    yield HostEvent(
        host=host.name,
        stage="evaluate",
        message=f"{done} of {len(outcomes)} evaluated",
        done=True,
        problem=problems[0] if problems else None,
        result_json=json.dumps({"evaluations": outcomes}),
    )


async def _data(
    context: FleetContext, host: Host, request: EvalRequest, fetching: asyncio.Lock
) -> AsyncGenerator[HostEvent]:
    """What is asked or read, fetched by the first host that gets here; the others wait for it."""
    async with fetching:
        kept = kept_corpus if request.perplexity else kept_dataset
        if await asyncio.to_thread(kept, context, request) is None:
            state = await gather_state(context, host)
            if isinstance(state, Problem):
                raise OperationError(state.code, state.message, state.remedy)
            async for event in fetch(context, state.facts, host, request):
                yield event


async def _questions(
    context: FleetContext, host: Host, cells: list[PlannedEval], request: EvalRequest, rows: list[QualityRow]
) -> AsyncGenerator[HostEvent]:
    (cell,) = cells
    judged = cell.judged
    dataset = await asyncio.to_thread(kept_dataset, context, request)
    assert judged is not None and dataset is not None
    protocol = protocol_named(request.protocol)
    asking = asking_of(dataset, request, protocol, judged.backend, judged.context_tokens, judged.slots)
    for warning in asking.warnings:
        yield HostEvent(host=host.name, stage="evaluate", message=f"{_name(cell)}: {warning}")
    key = key_of(context, judged, protocol, asking, dataset, again=request.again)
    run_id = run_id_of(key, asking.questions)
    kept = row_of_run(context, run_id)
    if kept is not None:
        rows.append(kept)
        return
    state = await gather_state(context, host)
    if isinstance(state, Problem):
        raise OperationError(state.code, state.message, state.remedy)
    harness_key = harness(state.facts, request.offline_folder).install_key
    step = evaluate_step(judged, protocol, asking, dataset, key, harness_key, request)
    job = JobSpec(
        job_id=f"eval-{run_id}",
        title=f"eval {judged.model} {judged.quantization}".strip(),
        steps=(*cell.steps, step),
        disk_needed_bytes=cell.disk_needed_bytes,
        environment=cell.environment,
    )
    answers: list[dict[str, Any]] = []
    async for event in _joined(context, host, job, answers):
        yield event
    result: dict[str, Any] = next((answer for answer in reversed(answers) if "state_key" in answer), {})
    row = question_row(
        host.name, judged, protocol, asking, dataset, run_id, job.job_id, _version(answers, judged), result
    )
    save_quality(context.database, row)
    rows.append(row)
    yield HostEvent(host=host.name, stage="evaluate", message=f"{_name(cell)}: {_text(row)}")


async def _perplexity(
    context: FleetContext, host: Host, cells: list[PlannedEval], request: EvalRequest, rows: list[QualityRow]
) -> AsyncGenerator[HostEvent]:
    corpus = await asyncio.to_thread(kept_corpus, context, request)
    assert corpus is not None
    names = [cell.judged.identity if cell.judged else "" for cell in cells]
    names += [cell.base.identity if cell.base else "" for cell in cells]
    text = json.dumps(
        [names, corpus.sha256, request.context, request.chunks, len(_stored(context)) if request.again else 0]
    )
    key = f"perplexity-{hashlib.sha256(text.encode()).hexdigest()[:PERPLEXITY_KEY_HEX_DIGITS]}"
    job = perplexity_job(cells, request, corpus, key)
    answers: list[dict[str, Any]] = []
    async for event in _joined(context, host, job, answers):
        yield event
    judged_by_path = {one.path: one for cell in cells for one in (cell.judged, cell.base) if one is not None}
    results = [answer for answer in answers if answer.get("state_key") == key]
    base_hash = ""
    for result in results:
        compares = "--kl-divergence" in result.get("argv", ())
        if not compares and "--kl-divergence-base" in result.get("argv", ()):
            base_hash = str(result["artifacts"][0]["sha256"])
        elif not result.get("runs"):
            base_hash = base_hash or str(result["artifacts"][0]["sha256"])
            continue  # its file of probabilities was there already: its figure was kept by the run that made it
        judged = judged_by_path[str(result["artifacts"][0]["path"])]
        version = _version(answers, judged)
        for row in perplexity_rows(host.name, judged, base_hash, corpus, key, job.job_id, version, result):
            save_quality(context.database, row)
            rows.append(row)
            yield HostEvent(host=host.name, stage="evaluate", message=f"{judged.quantization}: {_text(row)}")


def _stored(context: FleetContext) -> list[tuple[int, QualityRow]]:
    return load_quality(context.database)


async def _joined(
    context: FleetContext, host: Host, job: JobSpec, answers: list[dict[str, Any]]
) -> AsyncGenerator[HostEvent]:
    """The job under way is joined, one that ended well is taken in, else it is started (again)."""
    async with context.pool.client(host) as agent:
        ended = ended_well(await agent.list_jobs(), job)
    stream = run_job(context, host, job, answers)
    if ended is not None:
        stream = follow_job(context, host, ended.job_id, job.steps, answers)
    async for event in stream:
        yield event


def _version(answers: list[dict[str, Any]], judged: Judged) -> str:
    """What an install of this very job told of itself: adopted binaries were asked just before."""
    installs = [answer["install"] for answer in answers if isinstance(answer.get("install"), dict)]
    told = [str(one.get("version", "")) for one in installs if one.get("install_key") == judged.install_key]
    return told[-1] if told else ""


def _problem(error: Exception) -> Problem:
    if isinstance(error, (DatasetError, PerplexityError)):
        return Problem(code=error.code, message=error.message, remedy=error.remedy)
    return problem_of(error)


def _name(cell: PlannedEval) -> str:
    shown = cell.shown
    return " ".join(part for part in (shown.model, shown.quantization, shown.backend, shown.protocol) if part)


def _text(row: QualityRow) -> str:
    if row.metric != "mmlu_pro":
        return f"{TITLES[row.metric]} {row.score:.5g} ({row.low:.5g} to {row.high:.5g})"
    said = f"{100 * row.score:.1f} % ({100 * row.low:.1f} to {100 * row.high:.1f}) of {row.n} questions"
    return f"{said}, {row.cut_off} cut off" if row.cut_off else said


def _outcome(
    context: FleetContext, cells: list[PlannedEval], rows: list[QualityRow], problem: Problem | None
) -> dict[str, Any]:
    stored = [row for _, row in load_quality(context.database)]
    first = cells[0].shown
    return {
        "model": first.model,
        "quantization": first.quantization,
        "backend": first.backend,
        "protocol": first.protocol,
        "problem": problem.model_dump(mode="json") if problem is not None else None,
        "rows": [
            {**row.model_dump(mode="json", exclude={"raw"}), "fingerprint": row.fingerprint, "title": row.scale_text,
             "refused": row.raw.get("refused", 0), "no_letter": row.raw.get("no_letter", 0),
             "comparisons": comparisons(row, stored)}
            for row in rows
        ],
    }  # fmt: skip
