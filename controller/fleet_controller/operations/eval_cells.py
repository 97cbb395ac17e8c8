"""Cells of questions: services of a host that are ready, or servers made for the evaluation alone."""

import hashlib
import json
from collections.abc import Sequence

from fleet_controller.backends import BACKENDS
from fleet_controller.backends.base import BackendError
from fleet_controller.domain.base import Problem
from fleet_controller.domain.benches import CellAction
from fleet_controller.domain.evals import EvalCell, EvalRequest
from fleet_controller.domain.plan import DeployRequest, HostPlan, PlanAction
from fleet_controller.domain.resolved import ModelArtifact, ResolvedModel
from fleet_controller.domain.services import ServiceSpec, ServiceState, ServiceStatus
from fleet_controller.domain.steps import Step
from fleet_controller.evaluating.protocols import Protocol
from fleet_controller.operations.bench_case import (
    Case,
    CellStopped,
    action_of,
    engine_version,
    in_the_way,
    model_path,
    problem_of_cell,
    service_url,
)
from fleet_controller.operations.bench_cell import server_of
from fleet_controller.operations.bench_fitting import as_if_free
from fleet_controller.operations.eval_data import environment_of
from fleet_controller.operations.eval_model import Judged, PlannedEval
from fleet_controller.operations.problems import problem_of
from fleet_controller.planning.plan import located, plan_host

# What a server made for an evaluation is given, the first that fits: five examples, a question and a thoughtful answer.
CONTEXTS = (16384, 8192, 4096)
IDENTITY_HEX_DIGITS = 32
# Words of a command line that change no answer.
_OF_THE_PLACE = ("--port", "--host", "--alias", "--served-model-name")


def question_cells(
    case: Case, request: EvalRequest, protocol: Protocol, model: str, resolved: ResolvedModel | Exception
) -> list[PlannedEval]:
    """A cell of each service that serves the model; where none does, of a server for this evaluation, if allowed."""
    serving = [status for status in case.state.services if _serves(status, request, model, resolved)]
    ready = [status for status in serving if status.state is ServiceState.READY]
    if ready:
        return [_served(case, protocol, status, resolved) for status in ready]
    try:
        if not request.deploy:
            raise CellStopped(CellAction.FAIL, _nothing_ready(case, request, model, resolved, serving))
        if isinstance(resolved, Exception):
            raise CellStopped(CellAction.FAIL, problem_of(resolved))
        wanted: Sequence[str] = request.quantizations or ("",)
        return [_own_server(case, request, protocol, resolved, quantization) for quantization in wanted]
    except (BackendError, CellStopped) as error:
        return [stopped(case.host.name, model, action_of(error), problem_of_cell(error), protocol.title)]


def stopped(host: str, model: str, action: CellAction, problem: Problem, protocol: str = "") -> PlannedEval:
    shown = EvalCell(
        host=host, model=model, action=action, reason=problem.message, problem=problem, protocol=protocol,
        metric="mmlu_pro" if protocol else "perplexity",
    )  # fmt: skip
    return PlannedEval(shown=shown)


def _serves(status: ServiceStatus, request: EvalRequest, model: str, resolved: ResolvedModel | Exception) -> bool:
    spec = status.spec
    if request.quantizations and spec.quantization.upper() not in request.quantizations:
        return False
    if request.backend and spec.backend != request.backend:
        return False
    if isinstance(resolved, Exception):
        return spec.name == model
    places = {artifact.repository or artifact.local_path for artifact in resolved.artifacts}
    return spec.name in (model, resolved.name) or (bool(spec.model) and spec.model in places)


def _nothing_ready(
    case: Case, request: EvalRequest, model: str, resolved: ResolvedModel | Exception, serving: list[ServiceStatus]
) -> Problem:
    if serving:
        word = serving[0].state.value.removeprefix("SERVICE_STATE_").lower()
        return Problem(code="not-ready", message=f"{serving[0].spec.name} is {word}", remedy="fleet ps")
    wishes = " ".join(part for part in (model, request.quantization, request.backend) if part)
    message = f"no service of {case.host.name} serves {wishes}"
    whatever = request.model_copy(update={"quantization": "", "backend": ""})
    others = [status.spec for status in case.state.services if _serves(status, whatever, model, resolved)]
    if others:
        message += "; there is " + ", ".join(f"{one.name} {one.quantization}, {one.backend}" for one in others)
    remedy = "--deploy starts a server for this evaluation only, or: fleet deploy it first"
    return Problem(code="no-service", message=message, remedy=remedy)


def _served(case: Case, protocol: Protocol, status: ServiceStatus, resolved: ResolvedModel | Exception) -> PlannedEval:
    spec = status.spec
    version = engine_version(case.facts, spec.tool.install_key, spec.backend_version)
    model = spec.name if isinstance(resolved, Exception) else resolved.name
    judged = _judged(spec, model, spec.model, version, model_path(spec))
    judged = judged.model_copy(
        update={"base_url": service_url(spec), "secret": spec.api_key.secret if spec.api_key else ""}
    )
    shown = _shown(case, judged, protocol).model_copy(update={"server": f"service {spec.name}"})
    return PlannedEval(shown=shown, judged=judged, environment=environment_of(case.host))


def _own_server(
    case: Case, request: EvalRequest, protocol: Protocol, resolved: ResolvedModel, quantization: str
) -> PlannedEval:
    plan, steps, disk_bytes = planned_server(case, request, resolved, quantization)
    spec = plan.service
    assert spec is not None
    if spec.before_start or spec.shared_port_path:
        remedy = "fleet deploy it first"
        problem = Problem(code="no-service", message=f"{spec.backend} is asked as a running service", remedy=remedy)
        raise CellStopped(CellAction.FAIL, problem)
    paused = in_the_way(case, spec.gpu_indices)
    if paused and not request.pause_services:
        remedy = "--pause-services stops it and brings it back, or: fleet stop"
        problem = Problem(code="busy", message=f"busy: our own {', '.join(paused)} runs there", remedy=remedy)
        raise CellStopped(CellAction.REFUSE, problem)
    version = engine_version(case.facts, spec.tool.install_key, plan.backend_version)
    judged = _judged(spec, resolved.name, spec.model, version, model_path(spec))
    of_job = environment_of(case.host)
    server = server_of(spec)
    beyond = tuple(variable for variable in server.environment if variable not in of_job)
    server = server.model_copy(update={"environment": beyond})
    judged = judged.model_copy(update={"base_url": "{base_url}", "server": server})
    shown = _shown(case, judged, protocol).model_copy(
        update={
            "server": "for this evaluation only",
            "download_bytes": plan.download_bytes,
            "disk_bytes": disk_bytes,
            "install_needed": plan.install_needed,
            "paused_services": tuple(paused),
            "warnings": plan.warnings,
        }
    )
    return PlannedEval(
        shown=shown, judged=judged, steps=steps, environment=environment_of(case.host), disk_needed_bytes=disk_bytes
    )


def planned_server(
    case: Case, request: EvalRequest, resolved: ResolvedModel, quantization: str, contexts: Sequence[int] = CONTEXTS
) -> tuple[HostPlan, tuple[Step, ...], int]:
    """A server's plan, the steps before it and their disk, with the longest context that fits. Raises CellStopped."""
    paused = in_the_way(case, ()) if request.pause_services else []
    services = tuple(status for status in case.state.services if status.spec.name not in paused)
    problem = Problem(code="no-plan", message="no context was tried")
    longest = resolved.max_context or max(contexts)
    fitting = tuple(tokens for tokens in contexts if tokens <= longest) or (longest,)
    for context_tokens in (request.context,) if request.context else fitting:
        wanted = DeployRequest(
            model=resolved.name,
            backend=request.backend,
            quantization=quantization,
            context_length=context_tokens,
            max_parallel=request.workers or None,
            backend_version=request.backend_version,
            engine_path=request.engine_path,
            offline_folder=request.offline_folder,
            service_name=f"eval-{resolved.name}"[:64],
        )
        planned = plan_host(case.host, as_if_free(case), services, wanted, resolved, case.state.artifacts)
        if planned.plan.action is PlanAction.START and planned.prepare is not None:
            return planned.plan, planned.prepare.steps, planned.prepare.disk_needed_bytes
        problem = planned.plan.problem or Problem(code="no-plan", message=planned.plan.reason)
        if problem.code != "does-not-fit":
            break
    refused = planned.plan.action is PlanAction.REFUSE
    raise CellStopped(CellAction.REFUSE if refused else CellAction.FAIL, problem)


def artifact_path(case: Case, resolved: ResolvedModel, artifact: ModelArtifact, backend: str) -> str:
    """Where the file or folder lies on the host once it is there."""
    single = located(case.facts, resolved.model_copy(update={"artifacts": (artifact,)}))
    return BACKENDS[backend].model_path(single.artifacts[0], case.facts.layout.hf_home)


def identity_of(spec: ServiceSpec) -> str:
    """A hash of all that changes a server's answers and is known before: engine, file, and how it was started.

    The engine is its install: adopted binaries tell their version only once they have run.
    """
    kept, skip = [], False
    for word in spec.arguments:
        if not skip and word not in _OF_THE_PLACE:
            kept.append(word)
        skip = not skip and word in _OF_THE_PLACE
    environment = [(variable.name, variable.value) for variable in spec.environment]
    text = json.dumps([spec.backend, spec.tool.install_key, kept, environment, spec.model, spec.quantization])
    return hashlib.sha256(text.encode()).hexdigest()[:IDENTITY_HEX_DIGITS]


def _judged(spec: ServiceSpec, model: str, repository: str, version: str, path: str) -> Judged:
    return Judged(
        model=model,
        repository="" if repository.startswith("/") else repository,
        quantization=spec.quantization,
        backend=spec.backend,
        backend_version=version,
        install_key=spec.tool.install_key,
        identity=identity_of(spec),
        path=path,
        gpu_indices=spec.gpu_indices,
        served_model_name=spec.served_model_name or spec.name,
        context_tokens=spec.context_length,
        slots=spec.max_parallel,
    )


def _shown(case: Case, judged: Judged, protocol: Protocol) -> EvalCell:
    return EvalCell(
        host=case.host.name,
        model=judged.model,
        quantization=judged.quantization,
        backend=judged.backend,
        backend_version=judged.backend_version,
        metric="mmlu_pro",
        protocol=protocol.title,
        action=CellAction.RUN,
    )
