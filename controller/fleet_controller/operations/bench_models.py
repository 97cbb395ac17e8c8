"""Cells of models that are measured for themselves: every artifact and backend that was asked for."""

from fleet_controller.backends import BACKENDS
from fleet_controller.backends.base import BackendError, Installation, hub_snapshot_dir
from fleet_controller.benchmarking.cells import PlannedCell
from fleet_controller.benchmarking.clients import Client, Subject, client_for, measurable_parts
from fleet_controller.benchmarking.suites import Part
from fleet_controller.domain.base import Problem
from fleet_controller.domain.benches import BenchRequest, CellAction
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.resolved import GGUF, MLX, ModelArtifact, ResolvedModel
from fleet_controller.domain.steps import HubDownloadStep, Step
from fleet_controller.operations.bench_case import (
    Case,
    CellStopped,
    action_of,
    engine_version,
    problem_of_cell,
    service_url,
    stopped_cell,
    tokenizer_beside,
)
from fleet_controller.operations.bench_cell import planned_cell
from fleet_controller.operations.bench_fitting import fitting, running_same
from fleet_controller.operations.bench_identity import artifact_digest
from fleet_controller.operations.bench_served import served_cells
from fleet_controller.operations.choosing_models import unknown_path
from fleet_controller.operations.problems import problem_of
from fleet_controller.planning.plan import located
from fleet_inventory.host_file import Transport

DEFAULT_BACKENDS = ("llama.cpp", "mlx-lm")


def cells_of(case: Case, model: str, resolved: ResolvedModel | Exception) -> list[PlannedCell]:
    request = case.request
    served = next((status for status in case.state.services if status.spec.name == model), None)
    is_open = not (request.backend or request.quantization or request.repository)
    if served is not None and is_open and (case.suite.name == "quick" or isinstance(resolved, Exception)):
        return [cell for part in case.suite.parts for cell in served_cells(case, served, part)]
    if isinstance(resolved, Exception):
        return [stopped_cell(case.host.name, model, CellAction.FAIL, problem_of(resolved))]
    cells: list[PlannedCell] = []
    for backend in _backends(case.facts, request):
        formats = BACKENDS[backend].formats
        for artifact in resolved.artifacts:
            if artifact.format in formats and _is_wanted(artifact, request, model):
                cells += [
                    cell for part in case.suite.parts for cell in _new_cells(case, resolved, artifact, backend, part)
                ]
    if not cells:
        have = ", ".join(f"{item.quantization} ({item.format})" for item in resolved.artifacts) or "nothing"
        message = f"no backend of this host measures {resolved.name}: it comes as {have}"
        problem = Problem(code="no-artifact", message=message, remedy="choose another --backend or --quant")
        return [stopped_cell(case.host.name, model, CellAction.FAIL, problem)]
    return cells


def _is_wanted(artifact: ModelArtifact, request: BenchRequest, model: str) -> bool:
    wanted = request.quantization or (model.partition(":")[2] if ":" in model and not model.startswith("/") else "")
    return not wanted or artifact.quantization.lower() in [one.strip().lower() for one in wanted.split(",")]


def _backends(facts: HostFacts, request: BenchRequest) -> list[str]:
    """Those asked for; else the small ones, and the large ones that are installed already."""
    if request.backend:
        from fleet_controller.planning.usable import backend_named

        return [backend_named(name.strip()).name for name in request.backend.split(",")]
    present = {engine.backend for engine in facts.engines}
    chosen = [name for name in BACKENDS if name in DEFAULT_BACKENDS or name in present]
    chosen = [name for name in chosen if BACKENDS[name].unsupported_reason(facts) is None]
    # Elsewhere than on Apple silicon MLX computes on the CPU: only where somebody put it there.
    return [name for name in chosen if name != "mlx-lm" or facts.apple is not None or name in present]


def _new_cells(
    case: Case, resolved: ResolvedModel, artifact: ModelArtifact, backend: str, part: Part
) -> list[PlannedCell]:
    """A model that is measured for itself: with the engine's tool, or over a server made for it or running already."""
    label = artifact.quantization
    try:
        client = client_for(backend, "" if part.client == "engine" else part.client, part)
        parts, note = measurable_parts(client, part)
        return [_new_cell(case, resolved, artifact, backend, client, one, note) for one in parts]
    except (BackendError, CellStopped) as error:
        stopped = stopped_cell(case.host.name, resolved.name, action_of(error), problem_of_cell(error))
        shown = stopped.shown.model_copy(update={"quantization": label, "backend": backend})
        return [stopped.model_copy(update={"shown": shown})]


def _new_cell(
    case: Case,
    resolved: ResolvedModel,
    artifact: ModelArtifact,
    backend: str,
    client: Client,
    part: Part,
    note: str,
) -> PlannedCell:
    missing = unknown_path(case.host, located(case.facts, resolved))
    if missing is not None and case.host.transport is Transport.LOCAL:
        raise CellStopped(CellAction.FAIL, missing)
    asked = part
    part, plan, steps, disk_bytes = fitting(case, resolved, artifact, backend, client, asked)
    spec = plan.service
    assert spec is not None
    path = BACKENDS[backend].model_path(_located(case.facts, artifact), case.facts.layout.hf_home)
    tokenizer, tokenizer_step = _tokenizer(case, resolved, artifact, path) if client.over_http else ("", None)
    running = running_same(case, spec, artifact, part) if client.over_http else None
    if client.over_http and running is None and (spec.before_start or spec.shared_port_path):
        problem = Problem(
            code="not-served", message=f"{backend} is measured as a running service", remedy="fleet deploy it first"
        )
        raise CellStopped(CellAction.FAIL, problem)
    subject = Subject(
        backend=backend,
        installation=Installation(
            backend=backend,
            version=engine_version(case.facts, spec.tool.install_key, plan.backend_version),
            install_key=spec.tool.install_key,
        ),
        model_path=path,
        served_model_name=(running.spec if running else spec).served_model_name or resolved.name,
        base_url=service_url(running.spec) if running else "{base_url}",
        tokenizer=tokenizer,
        discards_first=bool(spec.gpu_indices) or case.facts.apple is not None,
    )
    lost = [str(depth) for depth in asked.depths if depth not in part.depths]
    notes = [*plan.warnings, *([note] if note else [])]
    notes += [f"depth {', '.join(lost)} does not fit"] if lost else []
    return planned_cell(
        case,
        resolved.name,
        artifact.quantization,
        artifact.repository or artifact.local_path,
        subject,
        client,
        part,
        spec,
        running,
        prepare=(*steps, *((tokenizer_step,) if tokenizer_step else ())),
        disk_bytes=disk_bytes,
        download_bytes=plan.download_bytes,
        install_needed=plan.install_needed,
        warnings=tuple(notes),
        digest=artifact_digest(artifact),
        weights_bytes=artifact.weights_bytes or artifact.download_bytes(),
        serve=client.over_http and running is None,
    )


def _located(facts: HostFacts, artifact: ModelArtifact) -> ModelArtifact:
    if not artifact.local_path.startswith("./"):
        return artifact
    return artifact.model_copy(update={"local_path": f"{facts.layout.model_dir}/{artifact.local_path[2:]}"})


def _tokenizer(case: Case, resolved: ResolvedModel, artifact: ModelArtifact, path: str) -> tuple[str, Step | None]:
    """A folder with tokenizer.json: of the model itself, or fetched from its repository in another format."""
    if case.request.tokenizer or artifact.format != GGUF:
        return case.request.tokenizer or path, None
    for other in sorted(resolved.artifacts, key=lambda item: item.format == MLX):
        files = tuple(file for file in other.files if file.path == "tokenizer.json")
        if other.format != GGUF and files and other.repository:
            step = HubDownloadStep(
                repository=other.repository,
                commit=other.commit,
                revision=other.revision,
                endpoint=case.host.environment.get("HF_ENDPOINT") or other.endpoint,
                files=files,
                token_file=case.host.environment.get("HF_TOKEN_PATH", ""),
            )
            folder = hub_snapshot_dir(other, case.facts.layout.hf_home)
            return folder, Step(name=f"fetch the tokenizer of {other.repository}", hub_download=step)
    return tokenizer_beside(path), None
