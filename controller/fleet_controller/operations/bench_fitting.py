"""What of a cell fits on its host: the depths for which there is room, or the service that has room already."""

from fleet_controller.benchmarking.clients import Client
from fleet_controller.benchmarking.suites import Part
from fleet_controller.choosing.work import LLAMA_CPP
from fleet_controller.domain.base import Problem
from fleet_controller.domain.benches import CellAction
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.plan import DeployRequest, HostPlan, PlanAction
from fleet_controller.domain.resolved import ModelArtifact, ResolvedModel
from fleet_controller.domain.services import ServiceSpec, ServiceState, ServiceStatus
from fleet_controller.domain.steps import Step
from fleet_controller.operations.bench_case import Case, CellStopped, in_the_way
from fleet_controller.planning.plan import plan_host


def fitting(
    case: Case, resolved: ResolvedModel, artifact: ModelArtifact, backend: str, client: Client, part: Part
) -> tuple[Part, HostPlan, tuple[Step, ...], int]:
    """The part with the depths that fit, all tried first. Raises CellStopped where none fits, or the host is busy."""
    single = resolved.model_copy(update={"artifacts": (artifact,)})
    facts = as_if_free(case)
    paused = in_the_way(case, ()) if case.request.pause_services else []
    services = tuple(status for status in case.state.services if status.spec.name not in paused)
    depths = sorted(part.depths)
    while True:
        tried = part.model_copy(update={"depths": tuple(depth for depth in part.depths if depth in depths)})
        wanted = DeployRequest(
            model=resolved.name,
            backend=backend,
            quantization=artifact.quantization,
            context_length=tried.context_tokens,
            max_parallel=max(tried.concurrency) if client.over_http and max(tried.concurrency) > 1 else None,
            backend_version=case.request.backend_version,
            engine_path=_engine_path(case, backend),
            offline_folder=case.request.offline_folder,
            service_name=f"bench-{resolved.name}"[:64],
        )
        planned = plan_host(case.host, facts, services, wanted, single, case.state.artifacts)
        if planned.plan.action is PlanAction.START and planned.prepare is not None:
            return tried, planned.plan, planned.prepare.steps, planned.prepare.disk_needed_bytes
        problem = planned.plan.problem or Problem(code="no-plan", message=planned.plan.reason)
        if problem.code == "does-not-fit" and len(depths) > 1:
            depths.pop()
            continue
        refused = planned.plan.action is PlanAction.REFUSE
        raise CellStopped(CellAction.REFUSE if refused else CellAction.FAIL, problem)


def _engine_path(case: Case, backend: str) -> str:
    """Binaries that lie on a host are of one backend: of several that nobody named, llama.cpp's."""
    return case.request.engine_path if backend == LLAMA_CPP or case.request.backend else ""


def as_if_free(case: Case) -> HostFacts:
    """The host's facts with what --pause-services will free, and without strangers where --when-idle waits for them."""
    facts = case.facts
    paused = in_the_way(case, ()) if case.request.pause_services else []
    stopped = [status for status in case.state.services if status.spec.name in paused]
    gpus = []
    for gpu in facts.gpus:
        freed = sum(
            (status.gpu_memory_bytes or 0) // max(len(status.spec.gpu_indices), 1)
            for status in stopped
            if gpu.index in status.spec.gpu_indices
        )
        free = None if gpu.memory_free_bytes is None else gpu.memory_free_bytes + freed
        processes = tuple(one for one in gpu.processes if one.ours) if case.request.when_idle else gpu.processes
        gpus.append(gpu.model_copy(update={"memory_free_bytes": free, "processes": processes}))
    returned = sum(status.resident_bytes or 0 for status in stopped)
    available = facts.memory.available_bytes
    memory = facts.memory.model_copy(update={"available_bytes": None if available is None else available + returned})
    return facts.model_copy(update={"gpus": tuple(gpus), "memory": memory, "leases": ()})  # benches wait for each other


def running_same(case: Case, spec: ServiceSpec, artifact: ModelArtifact, part: Part) -> ServiceStatus | None:
    """A ready service of the same engine and file with room for the tests."""
    for status in case.state.services:
        found = status.spec
        same = (found.backend, found.backend_version, found.quantization) == (
            spec.backend, spec.backend_version, artifact.quantization)  # fmt: skip
        same_model = found.model == (artifact.repository or artifact.local_path)
        room = found.context_length >= part.context_tokens and (found.max_parallel or 1) >= max(part.concurrency)
        if same and same_model and room and status.state is ServiceState.READY:
            return status
    return None
