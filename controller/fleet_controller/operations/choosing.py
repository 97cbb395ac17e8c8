"""`fleet choose`: for each host what would be deployed there and why, from its facts of now or the last known ones."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fleet_controller.benchmarking.cells import chip_of
from fleet_controller.choosing.decision import Decision
from fleet_controller.choosing.explain import explain, summary
from fleet_controller.choosing.models import compare_models
from fleet_controller.choosing.options import Goal
from fleet_controller.choosing.report import HostChoice, ModelChoice
from fleet_controller.choosing.ties import Cells
from fleet_controller.domain.base import Problem
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.resolved import ResolvedModel
from fleet_controller.domain.services import DesiredState
from fleet_controller.memory_store import load_observations
from fleet_controller.operations.choosing_knowledge import Knowledge
from fleet_controller.operations.choosing_models import Asked, KnownState, resolved_models, unknown_path, with_served
from fleet_controller.operations.choosing_next import next_commands
from fleet_controller.operations.choosing_options import Question, decision_with_cells
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.hosts import live_report
from fleet_controller.operations.problems import OperationError, problem_of
from fleet_controller.operations.reports import HostReport
from fleet_controller.operations.resolving import catalog
from fleet_controller.operations.threads import in_daemon_thread
from fleet_controller.planning.considering import consider
from fleet_controller.planning.devices import busy_text, foreign_processes, tells_power, visible_gpus
from fleet_controller.planning.fit_at import beyond_its_context
from fleet_controller.planning.plan import located
from fleet_controller.planning.problem import PlanProblem
from fleet_inventory.hosts import Host


@dataclass(frozen=True)
class ChooseRequest:
    """`models` as for a deploy, or one `repository`; `last_known`: no host is asked."""

    models: tuple[str, ...]
    pattern: str
    question: Question
    context_tokens: int | None = None
    repository: str = ""
    last_known: bool = False


async def choose(context: FleetContext, request: ChooseRequest) -> tuple[HostChoice, ...]:
    """The choice for each host of the pattern. Raises OperationError where the request itself cannot be met."""
    if not request.models and not request.repository:
        raise OperationError("no-model", "name a model", "fleet models lists them", usage=True)
    _refuse_impossible(request)
    hosts = context.select(request.pattern)
    requests = [
        DeployRequest(model=model, repository=request.repository, context_length=request.context_tokens)
        for model in dict.fromkeys(request.models or ("",))
    ]
    found, states = await asyncio.gather(
        resolved_models(requests, hosts),
        asyncio.gather(*(_state(context, host, request.last_known) for host in hosts)),
    )
    models = await with_served(requests, found, hosts, states)
    knowledge = Knowledge(context.database, catalog())

    def decided() -> tuple[HostChoice, ...]:
        return tuple(
            choice_of(host, state, models[host.name], knowledge, request.question)
            for host, state in zip(hosts, states, strict=True)
        )

    return await in_daemon_thread(decided)


def _refuse_impossible(request: ChooseRequest) -> None:
    """Raises OperationError (usage) for what no machine can meet."""
    floor, depth = request.question.quality_floor, request.question.depth
    if floor is not None and not 0 <= floor <= 1:
        meant = f"for {floor:g} % give --quality-floor {floor / 100:g}" if 1 < floor <= 100 else "0.55 is 55 %"
        raise OperationError("usage", f"a quality floor lies between 0 and 1, not at {floor:g}", meant, usage=True)
    if request.context_tokens is not None and depth >= request.context_tokens:
        message = f"a context of {request.context_tokens:,} tokens has no room behind a depth of {depth:,}"
        raise OperationError("usage", message, "name a longer --context or a smaller --depth", usage=True)


def choice_of(
    host: Host,
    state: KnownState | Problem,
    models: Sequence[Asked],
    knowledge: Knowledge,
    question: Question,
) -> HostChoice:
    """The choice for one host. Pure but for what `knowledge` reads."""
    if isinstance(state, Problem):
        return HostChoice(host=host.name, problem=state)
    gpus = visible_gpus(state.facts, host.environment)
    indices = tuple(gpu.index for gpu in gpus)
    choices: list[ModelChoice] = []
    decisions: dict[str, Decision] = {}
    cells: dict[str, Cells] = {}
    for request, resolved in models:
        if isinstance(resolved, Exception):
            choices.append(ModelChoice(model=request.model or request.repository, problem=problem_of(resolved)))
            continue
        choice, made_of = _model_choice(host, state, request, resolved, knowledge, question)
        choices.append(choice)
        if choice.decision is not None:
            decisions[resolved.name] = choice.decision
        if made_of is not None:
            cells[resolved.name] = made_of
    return HostChoice(
        host=host.name,
        chip=chip_of(state.facts, indices),
        device_count=max(len(indices), 1),
        basis=state.basis,
        models=tuple(choices),
        comparison=tuple(compare_models(decisions, question.goal, cells, knowledge.speed)),
    )


def _model_choice(
    host: Host,
    state: KnownState,
    request: DeployRequest,
    resolved: ResolvedModel,
    knowledge: Knowledge,
    question: Question,
) -> tuple[ModelChoice, Cells | None]:
    """With what a prediction of the chosen option is made of."""
    running = next(
        (one for one in state.services if one.spec.name == resolved.name and one.desired is DesiredState.RUNNING), None
    )
    try:
        considered = consider(host, state.facts, state.services, request, located(state.facts, resolved), running)
    except PlanProblem as problem:
        return ModelChoice(model=resolved.name, problem=problem.problem), None
    decision, cells = decision_with_cells(host.name, state.facts, resolved, considered.candidates, knowledge, question)
    if running is None and not any(ranked.standing.is_known for ranked in decision.ranked):
        nothing = unknown_path(host, located(state.facts, resolved))
        if nothing is not None:
            return ModelChoice(model=resolved.name, problem=nothing), None
    unusable = [f"{name} is of no use here: {why}" for name, why in considered.unusable]
    asked = request.context_length or 0
    too_long = [beyond_its_context(resolved, one.choice.artifact, asked) for one in considered.candidates[:1]]
    notes = [*_busy(host, state), *filter(None, too_long), *resolved.warnings, *unusable]
    measurable = question.goal is not Goal.ENERGY or tells_power(visible_gpus(state.facts, host.environment))
    if not measurable:
        notes.append("energy cannot be measured here: no device tells what power it draws (NVIDIA GPUs do)")
    if running is not None:
        spec = running.spec
        notes.insert(0, f"runs now: {spec.backend} {spec.quantization} at context {spec.context_length:,}")
    name = request.model or f"--repo {request.repository}"
    choice = ModelChoice(
        model=resolved.name,
        decision=decision,
        explanation=tuple(explain(decision)),
        notes=tuple(notes),
        next_commands=tuple(next_commands(name, host.name, decision, request.context_length, measurable)),
        summary=summary(decision),
    )
    return choice, cells.get(decision.chosen.option.name) if decision.chosen else None


def _busy(host: Host, state: KnownState) -> list[str]:
    foreign = foreign_processes(visible_gpus(state.facts, host.environment))
    if not foreign:
        return []
    texts = "; ".join(busy_text(process, state.facts.taken_unix_ms) for process in foreign)
    return [f"{texts}; fits are judged by what is left, and a deploy is refused until the GPU is idle"]


async def _state(context: FleetContext, host: Host, last_known: bool) -> KnownState | Problem:
    """Facts of now; where the host does not answer, the last known ones, and why they were taken."""
    if not last_known:
        report = await live_report(context, host)
        if report.facts is not None:
            return KnownState(_learnt(context, report.facts), report.services)
        problem = report.problem or Problem(code="no-facts", message="it told no facts")
    else:
        problem = Problem(code="not-asked", message="hosts were not asked")
    known = context.database.known_hosts().get(host.name)
    facts = HostReport.model_validate(known.report) if known is not None else None
    if facts is None or facts.facts is None:
        if last_known:
            remedy = f"run: fleet hosts {host.name}"
            return Problem(code="never-seen", message="no facts of this host are known yet", remedy=remedy)
        return problem
    taken = datetime.fromtimestamp(facts.facts.taken_unix_ms / 1000, UTC)
    basis = f"as of {taken:%Y-%m-%d %H:%M} UTC, since {problem.message}"
    return KnownState(_learnt(context, facts.facts), facts.services, basis)


def _learnt(context: FleetContext, facts: HostFacts) -> HostFacts:
    """With what servers were seen to take of memory, as plans count it."""
    return facts.model_copy(update={"observed_memory": load_observations(context.database)})


def goal_of(text: str) -> Goal:
    """Raises OperationError (usage)."""
    try:
        return Goal(text or Goal.DECODE)
    except ValueError:
        known = ", ".join(goal.value for goal in Goal)
        raise OperationError("usage", f"there is no goal {text!r}", f"one of: {known}", usage=True) from None
