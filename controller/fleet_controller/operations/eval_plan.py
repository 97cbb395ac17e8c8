"""The plan of evaluations: what would be asked of which server, and what that takes. Changes nothing."""

import asyncio
import hashlib

from fleet_controller.benchmarking.suites import load_suite
from fleet_controller.domain.base import Problem
from fleet_controller.domain.benches import BenchRequest, CellAction
from fleet_controller.domain.evals import EvalCell, EvalRequest
from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.resolved import ResolvedModel
from fleet_controller.domain.steps import EvaluateStep, Step
from fleet_controller.evaluating import perplexity
from fleet_controller.evaluating.asking import Asking, asking_of, protocol_named, run_id_of
from fleet_controller.evaluating.dataset import NAME, Dataset, DatasetError
from fleet_controller.evaluating.protocols import LM_EVAL, Protocol
from fleet_controller.evaluating.report import planning_note
from fleet_controller.evaluating.selection import DEFAULT_QUESTIONS
from fleet_controller.operations.bench_case import Case
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.eval_cells import question_cells, stopped
from fleet_controller.operations.eval_data import Corpus, harness, kept_corpus, kept_dataset
from fleet_controller.operations.eval_estimate import estimated
from fleet_controller.operations.eval_keys import key_of, row_of_run
from fleet_controller.operations.eval_model import PlannedEval, StoredEvalPlan
from fleet_controller.operations.eval_perplexity import perplexity_cells, perplexity_job, sizes_of
from fleet_controller.operations.eval_steps import evaluate_step
from fleet_controller.operations.planning import HostState, gather_state
from fleet_controller.operations.problems import OperationError
from fleet_controller.operations.resolving import named, resolve_for
from fleet_controller.planning.render import render
from fleet_inventory.hosts import Host

WHOLE_DATASET = 12_032


async def plan_eval(context: FleetContext, request: EvalRequest) -> StoredEvalPlan:
    """Raises OperationError where the request itself cannot be met."""
    if not request.models and not request.repository:
        raise OperationError("no-model", "name a model", "fleet models lists them", usage=True)
    try:
        protocol = protocol_named(request.protocol)
    except DatasetError as error:
        raise OperationError("usage", error.message, error.remedy, usage=True) from None
    hosts = context.select(request.pattern)
    states = await asyncio.gather(*(gather_state(context, host) for host in hosts))
    if request.perplexity:
        cells, notes = await _perplexity(context, request, hosts, states)
    else:
        cells, notes = await _questions(context, request, protocol, hosts, states)
    body = "".join(cell.model_dump_json() for cell in cells)
    plan_id = hashlib.sha256(f"{request.model_dump_json()}{body}".encode()).hexdigest()[:12]
    plan = StoredEvalPlan(plan_id=plan_id, request=request, cells=tuple(cells), notes=tuple(notes))
    context.database.save_plan(f"eval-{plan_id}", plan.model_dump_json())
    return plan


def load_eval_plan(context: FleetContext, plan_id: str) -> StoredEvalPlan:
    body = context.database.load_plan(f"eval-{plan_id}")
    if body is None:
        raise OperationError("no-such-plan", f"plan {plan_id} is not known here", "repeat the eval command")
    return StoredEvalPlan.model_validate_json(body)


async def _questions(
    context: FleetContext,
    request: EvalRequest,
    protocol: Protocol,
    hosts: tuple[Host, ...],
    states: list[HostState | Problem],
) -> tuple[list[PlannedEval], list[str]]:
    dataset = await asyncio.to_thread(kept_dataset, context, request)
    cells = []
    for model in request.models or ("",):
        for host, state in zip(hosts, states, strict=True):
            if isinstance(state, Problem):
                cells.append(stopped(host.name, model, CellAction.FAIL, state, protocol.title))
                continue
            case = _case(context, request, host, state)
            resolved = await _resolved(request, model, host)
            _demand_known(resolved, model, states)
            for cell in question_cells(case, request, protocol, model, resolved):
                cells.append(_with_questions(case, request, protocol, cell, dataset))
    return cells, _question_notes(request, dataset, cells)


def _demand_known(resolved: ResolvedModel | Exception, model: str, states: list[HostState | Problem]) -> None:
    """A model that is in no catalog and that nobody serves is the user's to correct."""
    served = any(one.spec.name == model for state in states if isinstance(state, HostState) for one in state.services)
    if isinstance(resolved, OperationError) and resolved.usage and not served:
        raise resolved


def _with_questions(
    case: Case, request: EvalRequest, protocol: Protocol, cell: PlannedEval, dataset: Dataset | None
) -> PlannedEval:
    """The cell with what is asked, where the data set is here, and what that takes."""
    judged = cell.judged
    if judged is None:
        return cell
    harness_here = harness(case.facts, request.offline_folder)
    needs_harness = protocol is LM_EVAL or dataset is None
    extra = harness_here.disk_bytes if needs_harness else 0
    asking: Asking | None = None
    if dataset is not None:
        try:
            asking = asking_of(dataset, request, protocol, judged.backend, judged.context_tokens, judged.slots)
        except DatasetError as error:
            if error.remedy.startswith("there are"):
                raise OperationError("usage", error.message, error.remedy, usage=True) from None
            problem = Problem(code="no-room", message=error.message, remedy=error.remedy)
            return stopped(case.host.name, judged.model, CellAction.FAIL, problem, protocol.title)
    steps = (*cell.steps, *(harness_here.steps if needs_harness else ()))
    questions = len(asking.questions) if asking is not None else 0
    workers = asking.workers if asking is not None else 0
    estimate = estimated(case.context, case.host.name, judged, protocol, questions or _expected(request), workers)
    shown = cell.shown.model_copy(
        update={
            "questions": questions,
            "workers": workers,
            "disk_bytes": cell.shown.disk_bytes + extra,
            "install_needed": cell.shown.install_needed or extra > 0,
            "estimated_seconds": estimate[0],
            "estimate_basis": estimate[1],
            "warnings": (*cell.shown.warnings, *(asking.warnings if asking is not None else ())),
        }
    )
    found = cell.model_copy(
        update={"shown": shown, "steps": steps, "disk_needed_bytes": cell.disk_needed_bytes + extra}
    )
    return _judged_already(case, request, protocol, found, dataset, asking)


def _expected(request: EvalRequest) -> int:
    """Questions that will be asked, before the data set is here: MMLU-Pro has 12,032."""
    return WHOLE_DATASET if request.all else request.questions or DEFAULT_QUESTIONS


def _judged_already(
    case: Case,
    request: EvalRequest,
    protocol: Protocol,
    cell: PlannedEval,
    dataset: Dataset | None,
    asking: Asking | None,
) -> PlannedEval:
    """The cell with its commands and its name; with a reason to skip where this run is kept."""
    assert cell.judged is not None
    steps, update = cell.steps, dict[str, object]()
    if dataset is not None and asking is not None:
        key = key_of(case.context, cell.judged, protocol, asking, dataset, again=request.again)
        run_id = run_id_of(key, asking.questions)
        step = evaluate_step(cell.judged, protocol, asking, dataset, key, harness(case.facts, "").install_key, request)
        steps = (*steps, step)
        update["cell_id"] = run_id
        if row_of_run(case.context, run_id) is not None:
            update |= {
                "action": CellAction.SKIP,
                "reason": "judged already; --again asks once more",
                "estimated_seconds": 0,
            }
    update["commands"] = render(case.facts, _short(steps), None, cell.environment)
    return cell.model_copy(update={"shown": cell.shown.model_copy(update=update)})


def _short(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """A plan is kept for a week: without the contents of files, which a run makes anew."""
    return tuple(
        step
        if step.evaluate is None
        else step.model_copy(update={"evaluate": EvaluateStep.model_copy(step.evaluate, update={"files": ()})})
        for step in steps
    )


def _question_notes(request: EvalRequest, dataset: Dataset | None, cells: list[PlannedEval]) -> list[str]:
    notes = []
    if dataset is None:
        first = next((cell.shown.host for cell in cells if cell.judged is not None), "a host")
        notes.append(f"data set: {NAME} from the hub, fetched by {first} once and kept here")
    else:
        notes.append(f"data set: {dataset.name}, {len(dataset.test)} questions, sha256 {dataset.sha256[:12]}")
    asked = max((cell.shown.questions for cell in cells), default=0)
    if not request.all and (asked or dataset is None):
        notes.append(planning_note(asked or request.questions or DEFAULT_QUESTIONS))
    return notes


async def _perplexity(
    context: FleetContext, request: EvalRequest, hosts: tuple[Host, ...], states: list[HostState | Problem]
) -> tuple[list[PlannedEval], list[str]]:
    corpus = await asyncio.to_thread(kept_corpus, context, request)
    cells: list[PlannedEval] = []
    for host, state in zip(hosts, states, strict=True):
        names = ", ".join(request.models)
        if isinstance(state, Problem):
            cells.append(stopped(host.name, names, CellAction.FAIL, state))
            continue
        models = []
        for model in request.models or ("",):
            # Which quantizations are measured is decided over all that there are: the base is one of them.
            resolved = await _resolved(request.model_copy(update={"quantization": ""}), model, host)
            if isinstance(resolved, Exception):
                raise resolved
            models.append(resolved)
        case = _case(context, request, host, state)
        found = perplexity_cells(case, request, models)
        extra = () if corpus is not None else harness(state.facts, request.offline_folder).steps
        cells += _with_commands(case, request, found, corpus, extra)
    return cells, _corpus_notes(request, corpus)


def _with_commands(
    case: Case, request: EvalRequest, cells: list[PlannedEval], corpus: Corpus | None, extra: tuple[Step, ...]
) -> list[PlannedEval]:
    runnable = [cell for cell in cells if cell.judged is not None]
    if not runnable:
        return cells
    shown_corpus = corpus or Corpus(name=perplexity.CORPUS, text="")
    job = perplexity_job(runnable, request, shown_corpus, "perplexity")
    commands = render(case.facts, _short((*extra, *job.steps)), None, runnable[0].environment)
    first = runnable[0].shown.model_copy(update={"commands": commands})
    return [cell.model_copy(update={"shown": first}) if cell is runnable[0] else cell for cell in cells]


def _corpus_notes(request: EvalRequest, corpus: Corpus | None) -> list[str]:
    context, chunks = sizes_of(request)
    where = "from the hub, fetched by a host once and kept here" if corpus is None else f"sha256 {corpus.sha256[:12]}"
    notes = [f"corpus: {corpus.name if corpus else perplexity.CORPUS}, {where}; {chunks} chunks of {context} tokens"]
    example = perplexity.base_bytes(151_936, context, chunks)
    notes.append(
        f"the base's probabilities take disk meanwhile: {example / 1e9:.1f} GB for a vocabulary of 151,936 words; "
        "--chunks makes it less"
    )
    return notes


def _case(context: FleetContext, request: EvalRequest, host: Host, state: HostState) -> Case:
    """What an evaluation shares with a bench: whose services are in the way, and what is free without them."""
    wanted = BenchRequest(pause_services=request.pause_services)
    return Case(context, wanted, load_suite("quick", context.settings.hosts_file.parent / "suites"), host, state)


async def _resolved(request: EvalRequest, model: str, host: Host) -> ResolvedModel | Exception:
    quantization = request.quantization if len(request.quantizations) == 1 else ""
    wanted = DeployRequest(
        model=model, repository=request.repository, quantization=quantization, backend=request.backend
    )
    try:
        return await resolve_for(named(wanted), host.environment.get("HF_ENDPOINT", ""), host.hub_token or "")
    except OperationError as error:
        return error


def shown_cells(plan: StoredEvalPlan) -> list[EvalCell]:
    return [cell.shown for cell in plan.cells]
