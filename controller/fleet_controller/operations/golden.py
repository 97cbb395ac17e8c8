"""Golden benches: what a service gives on one engine version, measured as it is served, and kept with the results."""

from collections.abc import AsyncGenerator
from typing import Any

from fleet_controller.benchmarking.cells import PlannedCell
from fleet_controller.benchmarking.golden import Evidence, Judgement, judge
from fleet_controller.benchmarking.suites import Probe, Suite, SuiteError, load_suite
from fleet_controller.domain.base import Problem
from fleet_controller.domain.benches import BenchRequest, CellAction
from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.plan import PlannedCommand
from fleet_controller.domain.services import ServiceSpec, ServiceStatus
from fleet_controller.domain.steps import JobSpec
from fleet_controller.operations.bench import measure_cell
from fleet_controller.operations.bench_case import Case
from fleet_controller.operations.bench_served import served_cells
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.jobs import run_job
from fleet_controller.operations.planning import HostState, gather_state
from fleet_controller.operations.problems import OperationError
from fleet_controller.planning.engine_state import Move
from fleet_controller.planning.jobs import smoke_job
from fleet_controller.planning.render import render
from fleet_controller.results.columns import Result
from fleet_inventory.hosts import Host

SUITE = "golden"


def golden_suite(context: FleetContext) -> Suite:
    """The user's own golden.yaml, else the shipped one. Raises OperationError (usage)."""
    try:
        return load_suite(SUITE, context.settings.hosts_file.parent / "suites")
    except SuiteError as error:
        raise OperationError(error.code, error.message, error.remedy, usage=True) from None


class GoldenBench:
    """The golden benches of one host's upgrade. `judgements` are added as the moves are proven."""

    def __init__(self, context: FleetContext, host: Host, threshold: float) -> None:
        self._context = context
        self._host = host
        self._threshold = threshold
        self._suite = golden_suite(context)
        self.judgements: list[Judgement] = []

    async def before(self, move: Move) -> AsyncGenerator[HostEvent]:
        """Measure the service on its old version, and keep that for the judgement. Raises OperationError.

        A move that a cut-off command began finds the service on the new version: what was kept then counts.
        """
        state = await _fresh(self._context, self._host)
        present = _status(state, move.old.name)
        if present is not None and present.spec.tool.install_key == move.old.tool.install_key:
            found: list[Evidence] = []
            async for event in self._evidence(state, present, found):
                yield event
            self._context.database.save_plan(self._id(state, move), found[0].model_dump_json())
        elif self._kept(state, move) is None:
            message = f"{move.old.name} was moved without a golden bench of its old version"
            raise OperationError("no-golden-bench", message, "deploy it on the old version, then repeat the command")

    async def after(self, move: Move) -> AsyncGenerator[HostEvent]:
        """Measure the service on its new version. Raises OperationError "worse" with the figures."""
        state = await _fresh(self._context, self._host)
        present, before = _status(state, move.new.name), self._kept(state, move)
        if present is None or before is None:
            raise OperationError("plan-changed", f"{move.new.name} is gone", "repeat the command to see the new plan")
        found: list[Evidence] = []
        async for event in self._evidence(state, present, found, asks=before.reply is not None):
            yield event
        try:
            judgement = judge(move.new.name, before, found[0], self._threshold)
        except ValueError as error:
            raise OperationError("no-golden-bench", str(error)) from None
        self.judgements.append(judgement)
        figures = "; ".join(figure.describe() for figure in judgement.figures)
        yield HostEvent(host=self._host.name, stage="golden bench", message=f"{move.new.name}: {figures}")
        if judgement.refused:
            limit = f"{self._threshold:.1%}".replace("%", " %")
            raise OperationError("worse", f"{judgement.refused} (the limit is {limit})")

    async def _evidence(
        self, state: HostState, status: ServiceStatus, found: list[Evidence], asks: bool = True
    ) -> AsyncGenerator[HostEvent]:
        """The chat is asked twice: one that does not repeat on one version cannot judge another."""
        name, probe = status.spec.name, self._suite.probe
        replies: list[str] = []
        for _ in range(2 if probe is not None and asks else 0):
            assert probe is not None
            async for event in self._ask(state.facts, status.spec, probe, replies):
                yield event
        if len(set(replies)) > 1:
            yield HostEvent(
                host=self._host.name, stage="golden chat", message=f"{name} answers differently each time: not judged"
            )
        results: list[Result] = []
        for cell in planned_cells(self._context, self._host, state, status, self._suite):
            if cell.shown.action is not CellAction.RUN:
                raise _not_measured(cell)
            async for event in measure_cell(self._context, self._host, cell, results):
                yield event.model_copy(update={"stage": "golden bench"})
        found.append(Evidence(results=tuple(results), reply=replies[0] if len(set(replies)) == 1 else None))

    async def _ask(
        self, facts: HostFacts, spec: ServiceSpec, probe: Probe, replies: list[str]
    ) -> AsyncGenerator[HostEvent]:
        job = golden_chat(facts, spec, probe)
        if job is None:
            return
        answers: list[dict[str, Any]] = []
        async for event in run_job(self._context, self._host, job, answers):
            yield event
        replies += [str(answer["text"]) for answer in answers if "text" in answer]

    def _kept(self, state: HostState, move: Move) -> Evidence | None:
        body = self._context.database.load_plan(self._id(state, move))
        return Evidence.model_validate_json(body) if body else None

    @staticmethod
    def _id(state: HostState, move: Move) -> str:
        return f"golden-{state.facts.machine_id}-{move.old.name}-{move.old.tool.install_key}"


def planned_cells(
    context: FleetContext, host: Host, state: HostState, status: ServiceStatus, suite: Suite
) -> list[PlannedCell]:
    """Once more, whatever is kept of it: both sides are measured on the same day. Other models are paused meanwhile."""
    request = BenchRequest(models=(status.spec.name,), pattern=host.name, suite=SUITE, again=True, pause_services=True)
    case = Case(context, request, suite, host, state)
    return [cell for part in suite.parts for cell in served_cells(case, status, part)]


def golden_chat(facts: HostFacts, spec: ServiceSpec, probe: Probe) -> JobSpec | None:
    """The smoke test's job with the golden chat; None where no loopback address leads to the service."""
    smoke = smoke_job(facts, spec)
    if smoke is None or smoke.steps[0].chat_probe is None:
        return None
    update = {"prompt": probe.prompt, "max_tokens": probe.max_tokens, "temperature": 0.0}
    step = smoke.steps[0].model_copy(
        update={"name": "golden chat", "chat_probe": smoke.steps[0].chat_probe.model_copy(update=update)}
    )
    return smoke.model_copy(
        update={"job_id": f"golden-{smoke.job_id}", "title": f"golden chat with {spec.name}", "steps": (step,)}
    )


def golden_commands(
    context: FleetContext, host: Host, facts: HostFacts, services: tuple[ServiceStatus, ...], moves: tuple[Move, ...]
) -> tuple[tuple[PlannedCommand, ...], tuple[str, ...]]:
    """What runs before and after each move, and which models pause for it. Raises OperationError where it cannot."""
    suite = golden_suite(context)
    state = HostState(facts, services, ())
    commands: list[PlannedCommand] = []
    paused: list[str] = []
    for move in moves:
        status = _status(state, move.old.name)
        assert status is not None
        for word, spec in (("before", move.old), ("after", move.new)):
            chat = golden_chat(facts, spec, suite.probe) if suite.probe is not None else None
            if chat is not None:
                commands += [_marked(word, command) for command in render(facts, chat.steps, None)]
            for cell in planned_cells(context, host, state, status.model_copy(update={"spec": spec}), suite):
                if cell.shown.action is not CellAction.RUN:
                    raise _not_measured(cell)
                commands += [_marked(word, command) for command in cell.shown.commands]
                paused += cell.shown.paused_services
    return tuple(commands), tuple(dict.fromkeys(paused))


def _marked(word: str, command: PlannedCommand) -> PlannedCommand:
    return command.model_copy(update={"purpose": f"{command.purpose} {word}"})


def _not_measured(cell: PlannedCell) -> OperationError:
    problem = cell.shown.problem or Problem(code="no-golden-bench", message=cell.shown.reason)
    return OperationError(problem.code, f"{cell.shown.model} cannot be measured: {problem.message}", problem.remedy)


def _status(state: HostState, name: str) -> ServiceStatus | None:
    return next((status for status in state.services if status.spec.name == name), None)


async def _fresh(context: FleetContext, host: Host) -> HostState:
    state = await gather_state(context, host)
    if isinstance(state, Problem):
        raise OperationError(state.code, state.message, state.remedy)
    return state
