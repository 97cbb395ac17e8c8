"""The plan of a bench: which cells there are, what each would do and take. Gathers what is so now; changes nothing."""

import asyncio
import hashlib
from pathlib import Path

from fleet_controller.benchmarking.calibration import Calibration, load_calibration
from fleet_controller.benchmarking.cells import PlannedCell
from fleet_controller.benchmarking.suites import DECIDE_SUITE, ENERGY_SUITE, Suite, SuiteError, load_suite
from fleet_controller.choosing.options import Goal
from fleet_controller.domain.base import Frozen, Problem
from fleet_controller.domain.benches import BenchPurpose, BenchRequest, CellAction
from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.resolved import ResolvedModel
from fleet_controller.operations.bench_candidates import goal_of, with_reasons
from fleet_controller.operations.bench_case import Case, stopped_cell
from fleet_controller.operations.bench_models import cells_of
from fleet_controller.operations.bench_served import endpoint_cells
from fleet_controller.operations.calibrate_cells import calibration_cells
from fleet_controller.operations.calibrate_predictions import shown_models
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.planning import HostState, gather_state
from fleet_controller.operations.problems import OperationError
from fleet_controller.operations.resolving import catalog, named, resolve_for
from fleet_controller.operations.threads import in_daemon_thread
from fleet_controller.planning.devices import tells_power, visible_gpus
from fleet_inventory.hosts import Host

NO_POWER = Problem(
    code="no-power",
    message="no device of this host tells what power it draws (NVIDIA GPUs do), so energy cannot be measured",
    remedy="decide by another --goal",
)


class StoredBenchPlan(Frozen):
    plan_id: str
    suite: str
    cells: tuple[PlannedCell, ...]
    request: BenchRequest = BenchRequest()


async def plan_bench(context: FleetContext, request: BenchRequest) -> StoredBenchPlan:
    """Raises OperationError where the request itself cannot be met."""
    if request.purpose is BenchPurpose.CALIBRATE:
        calibration = _calibration(context)
        shown_models(request, catalog())
        cells = await calibration_cells(context, request, calibration)
        return _kept(context, request, calibration.suite, cells)
    suite = _suite(context, request)
    if request.endpoint:
        cells = await endpoint_cells(context, request, suite)
    else:
        if not request.models and not request.repository:
            raise OperationError("no-model", "name a model", "fleet models lists them", usage=True)
        cells = await _model_cells(context, request, suite)
    if request.purpose is BenchPurpose.DECIDE:
        cells = await in_daemon_thread(lambda: with_reasons(context, request, cells))
    return _kept(context, request, suite, cells)


def _kept(context: FleetContext, request: BenchRequest, suite: Suite, cells: list[PlannedCell]) -> StoredBenchPlan:
    body = "".join(cell.model_dump_json() for cell in cells)
    plan_id = hashlib.sha256(f"{request.model_dump_json()}{body}".encode()).hexdigest()[:12]
    plan = StoredBenchPlan(plan_id=plan_id, suite=suite.name, cells=tuple(cells), request=request)
    context.database.save_plan(f"bench-{plan_id}", plan.model_dump_json())
    return plan


def load_bench_plan(context: FleetContext, plan_id: str) -> StoredBenchPlan:
    body = context.database.load_plan(f"bench-{plan_id}")
    if body is None:
        raise OperationError("no-such-plan", f"plan {plan_id} is not known here", "repeat the bench command")
    return StoredBenchPlan.model_validate_json(body)


def _calibration(context: FleetContext) -> Calibration:
    try:
        return load_calibration(_own_suites(context))
    except SuiteError as error:
        raise OperationError(error.code, error.message, error.remedy, usage=True) from None


def _own_suites(context: FleetContext) -> Path:
    return context.settings.hosts_file.parent / "suites"


def _suite(context: FleetContext, request: BenchRequest) -> Suite:
    usual = "quick"
    if request.purpose is BenchPurpose.DECIDE:
        usual = ENERGY_SUITE if goal_of(request) is Goal.ENERGY else DECIDE_SUITE
    try:
        suite = load_suite(request.suite or usual, _own_suites(context))
    except SuiteError as error:
        raise OperationError(error.code, error.message, error.remedy, usage=True) from None
    changes = {
        name: value
        for name in ("prompt_tokens", "generation_tokens", "repetitions")
        if (value := getattr(request, name)) is not None
    }
    changes |= {"client": request.client} if request.client else {}
    parts = tuple(dict.fromkeys(part.model_copy(update=changes) for part in suite.parts))
    if request.purpose is BenchPurpose.DECIDE:
        first = parts[0]  # options are compared in one test
        parts = (first.model_copy(update={"depths": first.depths[:1], "concurrency": first.concurrency[:1]}),)
    return suite.model_copy(update={"parts": parts})


async def _model_cells(context: FleetContext, request: BenchRequest, suite: Suite) -> list[PlannedCell]:
    hosts = context.select(request.pattern)
    states = await asyncio.gather(*(gather_state(context, host) for host in hosts))
    cells: list[PlannedCell] = []
    for model in request.models or ("",):
        models = await _resolved(request, model, hosts, states)
        for host, state in zip(hosts, states, strict=True):
            if isinstance(state, Problem):
                cells.append(stopped_cell(host.name, model, CellAction.FAIL, state))
                continue
            by_energy = request.purpose is BenchPurpose.DECIDE and goal_of(request) is Goal.ENERGY
            if by_energy and not tells_power(visible_gpus(state.facts, host.environment)):
                cells.append(stopped_cell(host.name, model, CellAction.FAIL, NO_POWER))
                continue
            case = Case(context, request, suite, host, state)
            cells += cells_of(case, model, models[_hub(host)])
    return cells


def _hub(host: Host) -> tuple[str, str]:
    return host.environment.get("HF_ENDPOINT", ""), host.hub_token or ""


def _only(names: str) -> str:
    """What a model is resolved for: one name; of several each is looked for among all that it has."""
    return "" if "," in names else names


async def _resolved(
    request: BenchRequest, model: str, hosts: tuple[Host, ...], states: list[HostState | Problem]
) -> dict[tuple[str, str], ResolvedModel | Exception]:
    """The model as each hub has it, or why it is not known there; a service's name needs no hub."""
    hubs = list(dict.fromkeys(_hub(host) for host in hosts))
    wanted = DeployRequest(
        model=model,
        repository=request.repository,
        quantization=_only(request.quantization),
        backend=_only(request.backend),
    )
    try:
        wanted = named(wanted)
        found = await asyncio.gather(*(resolve_for(wanted, *hub) for hub in hubs), return_exceptions=True)
    except OperationError as error:
        found = [error for _ in hubs]
    served = any(
        status.spec.name == model for state in states if isinstance(state, HostState) for status in state.services
    )
    errors = [error for error in found if isinstance(error, BaseException)]
    if errors and not served and len(errors) == len(hubs):
        raise errors[0]
    return {
        hub: answer if isinstance(answer, ResolvedModel | Exception) else OperationError("internal", str(answer))
        for hub, answer in zip(hubs, found, strict=True)
    }
