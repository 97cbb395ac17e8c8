"""The cells of a calibration: what the made-up models take on each host, with the engine that they need there."""

import asyncio

from fleet_controller.backends.base import Installation
from fleet_controller.benchmarking.calibration import Calibration, CalibrationCell
from fleet_controller.benchmarking.cells import PlannedCell
from fleet_controller.benchmarking.clients import Subject, client_for
from fleet_controller.domain.base import Problem
from fleet_controller.domain.benches import BenchRequest, CellAction
from fleet_controller.domain.resolved import GGUF, ModelArtifact, ResolvedModel
from fleet_controller.operations.bench_case import (
    Case,
    CellStopped,
    action_of,
    engine_version,
    problem_of_cell,
    stopped_cell,
)
from fleet_controller.operations.bench_cell import planned_cell
from fleet_controller.operations.bench_fitting import fitting
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.planning import gather_state

BACKEND = "llama.cpp"
# The agent fills in where it wrote the model; as a path it is only planned with.
MODEL_FILE = "{model_file}"
PLANNED_PATH = "/calibration.gguf"


async def calibration_cells(
    context: FleetContext, request: BenchRequest, calibration: Calibration
) -> list[PlannedCell]:
    """One cell a made-up model and host. Raises OperationError where the hosts are not known."""
    hosts = context.select(request.pattern)
    states = await asyncio.gather(*(gather_state(context, host) for host in hosts))
    cells: list[PlannedCell] = []
    for host, state in zip(hosts, states, strict=True):
        if isinstance(state, Problem):
            cells.append(stopped_cell(host.name, "", CellAction.FAIL, state))
            continue
        case = Case(context, request, calibration.suite, host, state)
        cells += [_cell(case, wanted) for wanted in calibration.cells_for(state.facts)]
    return cells


def _cell(case: Case, wanted: CalibrationCell) -> PlannedCell:
    try:
        return _planned(case, wanted)
    except CellStopped as error:
        stopped = stopped_cell(case.host.name, wanted.model.name, action_of(error), problem_of_cell(error))
        update = {"quantization": wanted.model.quantization, "backend": BACKEND}
        return stopped.model_copy(update={"shown": stopped.shown.model_copy(update=update)})


def _planned(case: Case, wanted: CalibrationCell) -> PlannedCell:
    """As for a model that lies on the host, without the look whether it is there: the agent makes it."""
    model = wanted.model
    artifact = ModelArtifact(
        format=GGUF,
        quantization=model.quantization,
        local_path=PLANNED_PATH,
        weights_bytes=model.weights_bytes,
        shape=model.shape,
    )
    resolved = ResolvedModel(name=model.name, shape=model.shape, artifacts=(artifact,))
    client = client_for(BACKEND, "", wanted.part)
    part, plan, steps, disk_bytes = fitting(case, resolved, artifact, BACKEND, client, wanted.part)
    spec = plan.service
    assert spec is not None
    subject = Subject(
        backend=BACKEND,
        installation=Installation(
            backend=BACKEND,
            version=engine_version(case.facts, spec.tool.install_key, plan.backend_version),
            install_key=spec.tool.install_key,
        ),
        model_path=MODEL_FILE,
        discards_first=bool(spec.gpu_indices) or case.facts.apple is not None,
    )
    planned = planned_cell(
        case,
        model.name,
        model.quantization,
        "made up on the host",
        subject,
        client,
        part,
        spec,
        None,
        prepare=tuple(step for step in steps if step.verify_file is None),
        disk_bytes=disk_bytes + model.weights_bytes,
        install_needed=plan.install_needed,
        warnings=plan.warnings,
        weights_bytes=model.weights_bytes,
        generated=model.generated,
    )
    reason = planned.shown.reason or f"{wanted.purpose}: {', '.join(planned.shown.tests)}"
    shown = planned.shown.model_copy(update={"reason": reason, "disk_bytes": planned.disk_needed_bytes})
    return planned.model_copy(update={"shown": shown})
