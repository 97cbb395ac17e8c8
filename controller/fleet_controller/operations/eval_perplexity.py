"""Cells of perplexity: the GGUF files of a model on one host, compared with the one of the highest precision."""

from dataclasses import dataclass

from fleet_controller.backends.base import BackendError, install_key
from fleet_controller.domain.base import Problem
from fleet_controller.domain.benches import CellAction
from fleet_controller.domain.evals import EvalCell, EvalRequest
from fleet_controller.domain.plan import HostPlan
from fleet_controller.domain.resolved import GGUF, ModelArtifact, ResolvedModel
from fleet_controller.domain.steps import AdoptEngineStep, EvaluateFile, EvaluateStep, JobSpec, Step, ToolRef
from fleet_controller.evaluating import perplexity
from fleet_controller.operations.bench_case import (
    Case,
    CellStopped,
    action_of,
    engine_version,
    in_the_way,
    problem_of_cell,
)
from fleet_controller.operations.eval_cells import artifact_path, identity_of, planned_server, stopped
from fleet_controller.operations.eval_data import Corpus, environment_of
from fleet_controller.operations.eval_files import packed
from fleet_controller.operations.eval_model import Judged, PlannedEval

BACKEND = "llama.cpp"
BINARY = "llama-perplexity"
STALL_SECONDS = 6 * 3600.0


@dataclass(frozen=True)
class _Candidate:
    """One file as it would be measured on the host."""

    judged: Judged
    plan: HostPlan
    steps: tuple[Step, ...]
    disk_bytes: int
    tool: ToolRef


def perplexity_cells(case: Case, request: EvalRequest, models: list[ResolvedModel]) -> list[PlannedEval]:
    """One cell a file; that of the highest precision is the base of the others, and measured first."""
    found = [(model, item) for model in models for item in model.artifacts if item.format == GGUF]
    found.sort(key=lambda pair: -(pair[1].weights_bytes or pair[1].download_bytes()))
    name = ", ".join(dict.fromkeys(model.name for model in models))
    try:
        wanted = _wanted(case, request, found)
        base, cells = _base(case, request, found), []
        for model, artifact in wanted:
            same = base is not None and base.judged.path == artifact_path(case, model, artifact, BACKEND)
            candidate = base if same and base is not None else _candidate(case, request, model, artifact)
            cells.append(_cell(case, request, candidate, None if same else base))
        return sorted(cells, key=lambda cell: cell.base is not None)
    except (BackendError, CellStopped) as error:
        return [stopped(case.host.name, name, action_of(error), problem_of_cell(error))]


def _wanted(
    case: Case, request: EvalRequest, found: list[tuple[ResolvedModel, ModelArtifact]]
) -> list[tuple[ResolvedModel, ModelArtifact]]:
    have = ", ".join(dict.fromkeys(artifact.quantization for _, artifact in found)) or "no GGUF file"
    if request.quantizations:
        chosen = [pair for pair in found if pair[1].quantization.upper() in request.quantizations]
        remedy = f"there is: {have}"
    else:
        chosen = [pair for pair in found if pair[1].local_path or _is_here(case, pair[1])]
        remedy = f"name quantizations with --quant: {have}"
    if not chosen:
        what = request.quantization or "any file"
        problem = Problem(code="no-artifact", message=f"{what} is not there to be measured", remedy=remedy)
        raise CellStopped(CellAction.FAIL, problem)
    return chosen


def _is_here(case: Case, artifact: ModelArtifact) -> bool:
    names = {file.path for file in artifact.files}
    return any(
        known.repository == artifact.repository and known.commit == artifact.commit and names <= set(known.files)
        for known in case.state.artifacts
    )


def _base(case: Case, request: EvalRequest, found: list[tuple[ResolvedModel, ModelArtifact]]) -> _Candidate | None:
    """The largest that fits, or the one that was named. None where there is one file only."""
    if len(found) < 2:
        return None
    if request.base:
        found = [pair for pair in found if pair[1].quantization.upper() == request.base.upper()]
        if not found:
            problem = Problem(
                code="no-artifact", message=f"there is no {request.base} to compare with", remedy="--base"
            )
            raise CellStopped(CellAction.FAIL, problem)
    last: CellStopped | None = None
    for model, artifact in found:
        try:
            return _candidate(case, request, model, artifact)
        except CellStopped as error:
            last = error
    assert last is not None
    raise last


def _candidate(case: Case, request: EvalRequest, model: ResolvedModel, artifact: ModelArtifact) -> _Candidate:
    single = model.model_copy(update={"artifacts": (artifact,)})
    context = max(request.context or perplexity.DEFAULT_CONTEXT, 512)
    wanted = request.model_copy(update={"backend": BACKEND, "context": context, "workers": 1})
    plan, steps, disk_bytes = planned_server(case, wanted, single, artifact.quantization)
    spec = plan.service
    assert spec is not None
    tool, more = _tool(request, steps, spec.tool.install_key)
    path = artifact_path(case, model, artifact, BACKEND)
    judged = Judged(
        model=model.name,
        repository=artifact.repository,
        quantization=artifact.quantization,
        backend=BACKEND,
        backend_version=engine_version(case.facts, spec.tool.install_key, plan.backend_version),
        install_key=spec.tool.install_key,
        identity=identity_of(spec.model_copy(update={"arguments": (path,), "environment": ()})),
        path=path,
        gpu_indices=spec.gpu_indices,
    )
    return _Candidate(judged, plan, (*steps, *more), disk_bytes, tool)


def _tool(request: EvalRequest, steps: tuple[Step, ...], key: str) -> tuple[ToolRef, tuple[Step, ...]]:
    """llama-perplexity of the engine. fleet's own builds hold it; of adopted programs it is taken along apart, since an
    install that others serve from is not changed."""
    adopted = next((step.adopt_engine for step in steps if step.adopt_engine is not None), None)
    path, source = (adopted.path, adopted.source_key) if adopted is not None else (request.engine_path, "")
    if not path and not source:
        return ToolRef(install_key=key, name=perplexity.TOOL), ()
    own = install_key(BINARY, "adopted", {"path": path, "source": source, "of": key})
    adopt = AdoptEngineStep(
        install_key=own, backend=BINARY, version="", path=path, source_key=source, binaries=(BINARY,)
    )
    return ToolRef(install_key=own, name=perplexity.TOOL), (Step(name=f"take {BINARY} along", adopt_engine=adopt),)


def _cell(case: Case, request: EvalRequest, candidate: _Candidate, base: _Candidate | None) -> PlannedEval:
    judged, plan = candidate.judged, candidate.plan
    paused = in_the_way(case, judged.gpu_indices)
    if paused and not request.pause_services:
        remedy = "--pause-services stops it and brings it back, or: fleet stop"
        problem = Problem(code="busy", message=f"busy: our own {', '.join(paused)} runs there", remedy=remedy)
        raise CellStopped(CellAction.REFUSE, problem)
    what = f"{perplexity.PROTOCOL} {perplexity.VERSION}"
    shown = EvalCell(
        host=case.host.name,
        model=judged.model,
        quantization=judged.quantization,
        backend=BACKEND,
        backend_version=judged.backend_version,
        metric="perplexity",
        protocol=what,
        server=f"KL divergence against {base.judged.quantization or base.judged.model}" if base else "no server",
        action=CellAction.RUN,
        download_bytes=plan.download_bytes,
        disk_bytes=candidate.disk_bytes,
        install_needed=plan.install_needed,
        paused_services=tuple(paused),
        warnings=plan.warnings,
    )
    return PlannedEval(
        shown=shown,
        judged=judged,
        steps=candidate.steps,
        environment=environment_of(case.host),
        disk_needed_bytes=candidate.disk_bytes + (base.disk_bytes if base else 0),
        tool=candidate.tool,
        base=base.judged if base else None,
        base_steps=base.steps if base else (),
    )


def perplexity_job(cells: list[PlannedEval], request: EvalRequest, corpus: Corpus, key: str) -> JobSpec:
    """All cells of one host: what must be there first, the base's probabilities, then each file against them."""
    first = cells[0]
    prepare = dict.fromkeys(step.model_dump_json() for cell in cells for step in (*cell.base_steps, *cell.steps))
    steps = [Step.model_validate_json(text) for text in prepare]
    compared = [cell for cell in cells if cell.base is not None]
    for cell in cells:
        if cell.base is None:
            steps.append(_measure(cell, cell.judged, request, corpus, key, bool(compared), False))
    if compared and all(cell.base is not None for cell in cells):
        steps.append(_measure(compared[0], compared[0].base, request, corpus, key, True, False))
    for number, cell in enumerate(compared, start=1):
        step = _measure(cell, cell.judged, request, corpus, key, True, True)
        if number == len(compared) and step.evaluate is not None:
            last = step.evaluate.model_copy(update={"removes": (perplexity.BASE_FILE,)})
            step = step.model_copy(update={"evaluate": last})
        steps.append(step)
    return JobSpec(
        job_id=f"eval-{key}",
        title=f"perplexity of {first.shown.model}",
        steps=tuple(steps),
        disk_needed_bytes=max(cell.disk_needed_bytes for cell in cells),
        environment=first.environment,
    )


def _measure(
    cell: PlannedEval,
    judged: Judged | None,
    request: EvalRequest,
    corpus: Corpus,
    key: str,
    with_base: bool,
    compare: bool,
) -> Step:
    assert judged is not None
    context, chunks = sizes_of(request)
    words = perplexity.arguments(
        judged.path, f"{{folder}}/{perplexity.CORPUS_FILE}", context, chunks, bool(judged.gpu_indices)
    )
    if with_base:
        words = perplexity.with_base(words, f"{{folder}}/{perplexity.BASE_FILE}" if compare else "{part}", compare)
    evaluate = EvaluateStep(
        state_key=key,
        tool=cell.tool,
        arguments=words,
        files=(EvaluateFile(name=perplexity.CORPUS_FILE, content_gzip=packed(corpus.text)),),
        takes_devices=True,
        gpu_indices=judged.gpu_indices,
        pause_services=request.pause_services,
        artifact_paths=(judged.path,),
        required_text=perplexity.REQUIRED_KL_TEXT if compare else perplexity.REQUIRED_TEXT,
        repeats=perplexity.REPEATS,
        produces=perplexity.BASE_FILE if with_base and not compare else "",
        stall_seconds=STALL_SECONDS,
    )
    what = "KL divergence" if compare else "perplexity"
    return Step(name=f"{what} of {judged.quantization or judged.model}", evaluate=evaluate)


def sizes_of(request: EvalRequest) -> tuple[int, int]:
    """(tokens of a chunk, chunks)."""
    return request.context or perplexity.DEFAULT_CONTEXT, request.chunks or perplexity.DEFAULT_CHUNKS
