"""The plan of a bench: which cells there are, what each would do and take. Gathers what is so now; changes nothing."""

import asyncio
import hashlib
from dataclasses import dataclass
from datetime import datetime

from fleet_controller.backends import BACKENDS
from fleet_controller.backends.base import BackendError, Installation, hub_snapshot_dir, installed
from fleet_controller.benchmarking.cells import Identity, PlannedCell, chip_of, test_names
from fleet_controller.benchmarking.clients import (
    Client,
    Subject,
    client_for,
    client_version,
    install_client,
    measurable_parts,
)
from fleet_controller.benchmarking.estimate import Estimate, from_earlier, guess
from fleet_controller.benchmarking.keys import with_api_key
from fleet_controller.benchmarking.suites import Part, Suite, SuiteError, load_suite
from fleet_controller.domain.addresses import base_url
from fleet_controller.domain.base import EnvironmentVariable, Frozen, Problem
from fleet_controller.domain.benches import BenchCell, BenchRequest, CellAction
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.plan import DeployRequest, HostPlan, PlanAction
from fleet_controller.domain.resolved import GGUF, MLX, ModelArtifact, ResolvedModel
from fleet_controller.domain.services import DesiredState, ServiceSpec, ServiceState, ServiceStatus
from fleet_controller.domain.steps import BenchServer, BenchStep, DeviceWatch, HubDownloadStep, Step
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.planning import HostState, gather_state
from fleet_controller.operations.problems import OperationError, problem_of
from fleet_controller.operations.resolving import named, resolve_for
from fleet_controller.planning.jobs import WILDCARD_ADDRESSES
from fleet_controller.planning.plan import plan_host
from fleet_controller.planning.render import render
from fleet_controller.results.columns import Status
from fleet_inventory.chips import find_chip
from fleet_inventory.hosts import Host

PATIENT_SECONDS = 7 * 24 * 3600.0
DEFAULT_BACKENDS = ("llama.cpp", "mlx-lm")
MODEL_OPTIONS = ("--model", "--model-path", "-m")
LOOPBACK = "127.0.0.1"


class StoredBenchPlan(Frozen):
    plan_id: str
    suite: str
    cells: tuple[PlannedCell, ...]


class _Stop(Exception):
    """A cell cannot be measured so."""

    def __init__(self, action: CellAction, problem: Problem) -> None:
        super().__init__(problem.message)
        self.action = action
        self.problem = problem


@dataclass(frozen=True)
class _Case:
    """Everything about one host and one model that its cells share."""

    context: FleetContext
    request: BenchRequest
    suite: Suite
    host: Host
    state: HostState

    @property
    def facts(self) -> HostFacts:
        return self.state.facts


async def plan_bench(context: FleetContext, request: BenchRequest) -> StoredBenchPlan:
    """Raises OperationError where the request itself cannot be met."""
    suite = _suite(context, request)
    if request.endpoint:
        cells = await _endpoint_cells(context, request, suite)
    else:
        if not request.models and not request.repository:
            raise OperationError("no-model", "name a model", "fleet models lists them", usage=True)
        cells = await _model_cells(context, request, suite)
    body = "".join(cell.model_dump_json() for cell in cells)
    plan_id = hashlib.sha256(f"{request.model_dump_json()}{body}".encode()).hexdigest()[:12]
    plan = StoredBenchPlan(plan_id=plan_id, suite=suite.name, cells=tuple(cells))
    context.database.save_plan(f"bench-{plan_id}", plan.model_dump_json())
    return plan


def load_bench_plan(context: FleetContext, plan_id: str) -> StoredBenchPlan:
    body = context.database.load_plan(f"bench-{plan_id}")
    if body is None:
        raise OperationError("no-such-plan", f"plan {plan_id} is not known here", "repeat the bench command")
    return StoredBenchPlan.model_validate_json(body)


def _suite(context: FleetContext, request: BenchRequest) -> Suite:
    try:
        suite = load_suite(request.suite or "quick", context.settings.hosts_file.parent / "suites")
    except SuiteError as error:
        raise OperationError(error.code, error.message, error.remedy, usage=True) from None
    changes = {
        name: value
        for name in ("prompt_tokens", "generation_tokens", "repetitions")
        if (value := getattr(request, name)) is not None
    }
    changes |= {"client": request.client} if request.client else {}
    parts = tuple(dict.fromkeys(part.model_copy(update=changes) for part in suite.parts))
    return suite.model_copy(update={"parts": parts})


async def _model_cells(context: FleetContext, request: BenchRequest, suite: Suite) -> list[PlannedCell]:
    hosts = context.select(request.pattern)
    states = await asyncio.gather(*(gather_state(context, host) for host in hosts))
    cells: list[PlannedCell] = []
    for model in request.models or ("",):
        models = await _resolved(request, model, hosts, states)
        for host, state in zip(hosts, states, strict=True):
            if isinstance(state, Problem):
                cells.append(_stopped(host.name, model, CellAction.FAIL, state))
                continue
            case = _Case(context, request, suite, host, state)
            cells += _cells_of(case, model, models[_hub(host)])
    return cells


def _hub(host: Host) -> tuple[str, str]:
    return host.environment.get("HF_ENDPOINT", ""), host.hub_token or ""


async def _resolved(
    request: BenchRequest, model: str, hosts: tuple[Host, ...], states: list[HostState | Problem]
) -> dict[tuple[str, str], ResolvedModel | Exception]:
    """The model as each hub has it, or why it is not known there; a service's name needs no hub."""
    hubs = list(dict.fromkeys(_hub(host) for host in hosts))
    wanted = DeployRequest(
        model=model, repository=request.repository, quantization=request.quantization, backend=request.backend
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


def _cells_of(case: _Case, model: str, resolved: ResolvedModel | Exception) -> list[PlannedCell]:
    request = case.request
    served = next((status for status in case.state.services if status.spec.name == model), None)
    is_open = not (request.backend or request.quantization or request.repository)
    if served is not None and is_open and (case.suite.name == "quick" or isinstance(resolved, Exception)):
        return [cell for part in case.suite.parts for cell in _served_cells(case, served, part)]
    if isinstance(resolved, Exception):
        return [_stopped(case.host.name, model, CellAction.FAIL, problem_of(resolved))]
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
        return [_stopped(case.host.name, model, CellAction.FAIL, problem)]
    return cells


def _is_wanted(artifact: ModelArtifact, request: BenchRequest, model: str) -> bool:
    wanted = request.quantization or (model.partition(":")[2] if ":" in model and not model.startswith("/") else "")
    return not wanted or artifact.quantization.lower() in [one.strip().lower() for one in wanted.split(",")]


def _backends(facts: HostFacts, request: BenchRequest) -> list[str]:
    """Those asked for; else the small ones, and the large ones that are installed already."""
    if request.backend:
        from fleet_controller.planning.candidates import backend_named

        return [backend_named(name.strip()).name for name in request.backend.split(",")]
    present = {engine.backend for engine in facts.engines}
    chosen = [name for name in BACKENDS if name in DEFAULT_BACKENDS or name in present]
    chosen = [name for name in chosen if BACKENDS[name].unsupported_reason(facts) is None]
    # Elsewhere than on Apple silicon MLX computes on the CPU: only where somebody put it there.
    return [name for name in chosen if name != "mlx-lm" or facts.apple is not None or name in present]


def _served_cells(case: _Case, status: ServiceStatus, part: Part) -> list[PlannedCell]:
    """What a service of this host serves, as it serves it."""
    spec = status.spec
    try:
        client = client_for(spec.backend, "" if part.client == "engine" else part.client, part)
        parts, note = measurable_parts(client, part)
        path = model_path(spec)
        subject = Subject(
            backend=spec.backend,
            installation=Installation(
                backend=spec.backend,
                version=_engine_version(case.facts, spec.tool.install_key, spec.backend_version),
                install_key=spec.tool.install_key,
            ),
            model_path=path,
            served_model_name=spec.served_model_name or spec.name,
            base_url=_service_url(spec),
            tokenizer=_tokenizer_beside(path),
            discards_first=bool(spec.gpu_indices) or case.facts.apple is not None,
        )
        if client.over_http:
            _demand_usable(status)
        else:
            _demand_installed(subject)
        notes = tuple([note] if note else [])
        return [
            _planned(case, spec.name, spec.quantization, spec.model or path, subject, client, one, spec, status,
                     warnings=notes)
            for one in parts
        ]  # fmt: skip
    except (BackendError, _Stop) as error:
        return [_stopped(case.host.name, spec.name, _action_of(error), problem_of_cell(error))]


def _engine_version(facts: HostFacts, install_key: str, label: str) -> str:
    """What the install says of itself: adopted binaries were asked for their version."""
    present = installed(facts, install_key)
    return (present.version if present is not None else None) or label


def _demand_installed(subject: Subject) -> None:
    if not subject.installation.install_key:
        problem = Problem(code="no-bench", message=f"{subject.backend} has no benchmark of its own",
                          remedy="--client llama-benchy measures it over HTTP")  # fmt: skip
        raise _Stop(CellAction.FAIL, problem)


def _demand_usable(status: ServiceStatus) -> None:
    if status.state is not ServiceState.READY:
        word = status.state.value.removeprefix("SERVICE_STATE_").lower()
        problem = Problem(code="not-ready", message=f"{status.spec.name} is {word}", remedy="fleet ps")
        raise _Stop(CellAction.FAIL, problem)


def _action_of(error: Exception) -> CellAction:
    return error.action if isinstance(error, _Stop) else CellAction.FAIL


def problem_of_cell(error: Exception) -> Problem:
    return error.problem if isinstance(error, _Stop) else problem_of(error)


def _new_cells(
    case: _Case, resolved: ResolvedModel, artifact: ModelArtifact, backend: str, part: Part
) -> list[PlannedCell]:
    """A model that is measured for itself: with the engine's tool, or over a server made for it or running already."""
    label = artifact.quantization
    try:
        client = client_for(backend, "" if part.client == "engine" else part.client, part)
        parts, note = measurable_parts(client, part)
        return [_new_cell(case, resolved, artifact, backend, client, one, note) for one in parts]
    except (BackendError, _Stop) as error:
        stopped = _stopped(case.host.name, resolved.name, _action_of(error), problem_of_cell(error))
        shown = stopped.shown.model_copy(update={"quantization": label, "backend": backend})
        return [stopped.model_copy(update={"shown": shown})]


def _new_cell(
    case: _Case,
    resolved: ResolvedModel,
    artifact: ModelArtifact,
    backend: str,
    client: Client,
    part: Part,
    note: str,
) -> PlannedCell:
    asked = part
    part, plan, steps, disk_bytes = _fitting(case, resolved, artifact, backend, client, asked)
    spec = plan.service
    assert spec is not None
    path = BACKENDS[backend].model_path(_located(case.facts, artifact), case.facts.layout.hf_home)
    tokenizer, tokenizer_step = _tokenizer(case, resolved, artifact, path) if client.over_http else ("", None)
    running = _running_same(case, spec, artifact, part) if client.over_http else None
    if client.over_http and running is None and (spec.before_start or spec.shared_port_path):
        problem = Problem(
            code="not-served", message=f"{backend} is measured as a running service", remedy="fleet deploy it first"
        )
        raise _Stop(CellAction.FAIL, problem)
    subject = Subject(
        backend=backend,
        installation=Installation(
            backend=backend,
            version=_engine_version(case.facts, spec.tool.install_key, plan.backend_version),
            install_key=spec.tool.install_key,
        ),
        model_path=path,
        served_model_name=(running.spec if running else spec).served_model_name or resolved.name,
        base_url=_service_url(running.spec) if running else "{base_url}",
        tokenizer=tokenizer,
        discards_first=bool(spec.gpu_indices) or case.facts.apple is not None,
    )
    lost = [str(depth) for depth in asked.depths if depth not in part.depths]
    notes = [*plan.warnings, *([note] if note else [])]
    notes += [f"depth {', '.join(lost)} does not fit"] if lost else []
    return _planned(
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
        digest=_artifact_digest(artifact),
        weights_bytes=artifact.weights_bytes or artifact.download_bytes(),
        serve=client.over_http and running is None,
    )


def _fitting(
    case: _Case, resolved: ResolvedModel, artifact: ModelArtifact, backend: str, client: Client, part: Part
) -> tuple[Part, HostPlan, tuple[Step, ...], int]:
    """The part with the depths that fit, deepest first tried. Raises _Stop where none does, or the host is busy."""
    single = resolved.model_copy(update={"artifacts": (artifact,)})
    facts = _as_if_free(case)
    paused = _in_the_way(case, ()) if case.request.pause_services else []
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
            engine_path=case.request.engine_path,
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
        raise _Stop(CellAction.REFUSE if refused else CellAction.FAIL, problem)


def _as_if_free(case: _Case) -> HostFacts:
    """The host's facts with what --pause-services will free, and without strangers where --when-idle waits for them."""
    facts = case.facts
    paused = _in_the_way(case, ()) if case.request.pause_services else []
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


def _in_the_way(case: _Case, gpu_indices: tuple[int, ...], measured: str = "") -> list[str]:
    """Services of ours that should run on these devices and are not measured; no device named = all of the host."""
    return [
        status.spec.name
        for status in case.state.services
        if status.desired is DesiredState.RUNNING
        and status.state is not ServiceState.FAILED
        and status.spec.name != measured
        and (not gpu_indices or not status.spec.gpu_indices or set(gpu_indices) & set(status.spec.gpu_indices))
    ]


def _running_same(case: _Case, spec: ServiceSpec, artifact: ModelArtifact, part: Part) -> ServiceStatus | None:
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


def _planned(
    case: _Case,
    name: str,
    quantization: str,
    artifact: str,
    subject: Subject,
    client: Client,
    part: Part,
    spec: ServiceSpec,
    running: ServiceStatus | None,
    *,
    prepare: tuple[Step, ...] = (),
    disk_bytes: int = 0,
    download_bytes: int = 0,
    install_needed: bool = False,
    warnings: tuple[str, ...] = (),
    digest: str = "",
    weights_bytes: int = 0,
    serve: bool = False,
    foreign_port: int = 0,
) -> PlannedCell:
    installation = install_client(case.facts, client, subject.installation, case.request.offline_folder)
    measured = running.spec.name if running is not None else ""
    in_the_way = _in_the_way(case, spec.gpu_indices, measured)
    if in_the_way and not case.request.pause_services:
        message = f"busy: our own {', '.join(in_the_way)} runs there"
        problem = Problem(
            code="busy", message=message, remedy="--pause-services stops it and brings it back, or: fleet stop"
        )
        raise _Stop(CellAction.REFUSE, problem)
    job_environment = tuple(
        EnvironmentVariable(name=key, value=value) for key, value in sorted(case.host.environment.items())
    )
    step = client.step(subject, part, installation)
    step = step.model_copy(
        update={
            "watch": _watch(case, spec.gpu_indices),
            "server": _server(spec) if serve else None,
            "environment": _beyond(job_environment, step.environment, spec.environment if not client.over_http else ()),
            "pause_services": case.request.pause_services,
            "service": measured,
            "service_is_idle": bool(measured) and not client.over_http,
            "measured_port": foreign_port,
            "artifact_paths": (subject.model_path,) if subject.model_path.startswith("/") else (),
            "repeats": case.suite.idle.repeats,
        }
    )
    if running is not None and running.spec.api_key is not None and client.over_http:
        step = with_api_key(step, running.spec.api_key.secret)
    identity = _identity(case, name, quantization, artifact, digest, subject, client, part, spec, step)
    measuring = Step(name=f"measure with {client.name}", bench=step)
    of_client = installation.steps if installation is not subject.installation else ()
    steps = (*prepare, *of_client, measuring)
    present, when = _present(case.context, identity.cell_id)
    wanted = max(case.request.repeat, 1)
    last = present + wanted if case.request.again else max(wanted, present)
    ordinals = tuple(range(present + 1, last + 1))
    estimate = _estimate(
        case, identity, part, weights_bytes, max(len(ordinals), 1), download_bytes,
        any(step.python_environment or step.cmake_build for step in steps),
    )  # fmt: skip
    extra_disk = installation.disk_bytes if installation is not subject.installation else 0
    waits = tuple(f"waits for {lease.title}, which measures there now" for lease in case.facts.leases)
    shown = BenchCell(
        cell_id=identity.cell_id,
        host=case.host.name,
        model=name,
        quantization=quantization,
        backend=subject.backend,
        backend_version=subject.installation.version,
        client=client.name,
        client_version=identity.client_version,
        action=CellAction.RUN if ordinals else CellAction.SKIP,
        reason="" if ordinals else f"measured on {when}; --again measures once more",
        tests=test_names(part),
        runs=len(ordinals),
        estimated_seconds=estimate.seconds if ordinals else 0.0,
        estimate_basis=estimate.basis,
        estimate_is_guess=estimate.is_guess,
        download_bytes=download_bytes,
        disk_bytes=(disk_bytes if install_needed or download_bytes else 0) + extra_disk,
        install_needed=install_needed or extra_disk > 0,
        paused_services=tuple(in_the_way),
        foreign=foreign_port > 0,
        commands=render(case.facts, steps, None, job_environment),
        warnings=(*warnings, *waits),
    )
    return PlannedCell(
        shown=shown,
        identity=identity,
        steps=steps,
        environment=job_environment,
        disk_needed_bytes=disk_bytes + extra_disk,
        ordinals=ordinals,
        discarded=1 if subject.discards_first and client.name == "llama-bench" else 0,
    )


def _watch(case: _Case, gpu_indices: tuple[int, ...]) -> DeviceWatch:
    idle = case.suite.idle
    return DeviceWatch(
        gpu_indices=gpu_indices,
        idle_wait_seconds=PATIENT_SECONDS if case.request.when_idle else idle.wait_seconds,
        foreign_cpu_percent=idle.foreign_cpu_percent,
    )


def _server(spec: ServiceSpec) -> BenchServer:
    words = list(spec.arguments)
    for position, word in enumerate(words[:-1]):
        if word == "--port":
            words[position + 1] = "{port}"
    return BenchServer(
        tool=spec.tool,
        arguments=tuple(words),
        environment=spec.environment,
        readiness_path=spec.readiness.path,
        start_limit_seconds=spec.readiness.start_limit_seconds,
    )


def _beyond(
    known: tuple[EnvironmentVariable, ...], *groups: tuple[EnvironmentVariable, ...]
) -> tuple[EnvironmentVariable, ...]:
    """What the groups set and the job does not set already; later groups win."""
    values = {variable.name: variable.value for group in groups for variable in group}
    same = {(variable.name, variable.value) for variable in known}
    return tuple(EnvironmentVariable(name=k, value=v) for k, v in sorted(values.items()) if (k, v) not in same)


def _identity(
    case: _Case,
    name: str,
    quantization: str,
    artifact: str,
    digest: str,
    subject: Subject,
    client: Client,
    part: Part,
    spec: ServiceSpec,
    step: BenchStep,
) -> Identity:
    facts = case.facts
    gpu = next((gpu for gpu in facts.gpus if gpu.index in spec.gpu_indices), None)
    cuda = facts.nvidia.cuda_version if facts.nvidia and gpu else None
    return Identity(
        host=case.host.name,
        machine_id=facts.machine_id,
        chip=chip_of(facts, spec.gpu_indices),
        device_count=max(len(spec.gpu_indices), 1),
        driver_version=(facts.nvidia.driver_version or "") if facts.nvidia and gpu else "",
        runtime_version=f"CUDA {cuda}" if cuda else "",
        os_name=facts.system.os_name,
        power_limit_watts=gpu.power_limit_watts if gpu else None,
        persistence_mode=gpu.persistence_mode if gpu else None,
        backend=subject.backend,
        backend_version=subject.installation.version,
        install_key=subject.installation.install_key,
        model=name,
        quantization=quantization,
        artifact=artifact,
        artifact_digest=digest,
        suite=case.suite.name,
        client=client.name,
        client_version=client_version(client, subject),
        flags=_flags(spec, subject) if client.over_http else "",
        part=part,
    )


def _flags(spec: ServiceSpec, subject: Subject) -> str:
    """What a server was started with, without paths, names and ports: they change no speed."""
    import shlex

    kept, skip = [], False
    for word in spec.arguments:
        if skip:
            skip = False
        elif word in (*MODEL_OPTIONS, "--port", "--host", "--alias", "--served-model-name", "--mmproj"):
            skip = True
        elif word != subject.model_path:
            kept.append(word)
    return shlex.join(kept)


def _artifact_digest(artifact: ModelArtifact) -> str:
    if not artifact.files:
        return f"{artifact.local_path}:{artifact.weights_bytes or 0}"
    text = "".join(f"{file.path}:{file.sha256 or file.git_blob_id}:{file.size_bytes}\n" for file in artifact.files)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _present(context: FleetContext, cell_id: str) -> tuple[int, str]:
    """How many runs of a cell are kept, and the day of the last one."""
    found = context.database.connection.execute(
        "SELECT run_id, max(finished_unix_ms) FROM results WHERE run_id LIKE ? AND status = ? GROUP BY run_id",
        (f"bench-{cell_id}-r%", Status.MEASURED),
    ).fetchall()
    numbers = [int(row[0].rpartition("-r")[2]) for row in found if row[0].rpartition("-r")[2].isdigit()]
    last = max((int(row[1]) for row in found), default=0)
    return max(numbers, default=0), f"{datetime.fromtimestamp(last / 1000):%Y-%m-%d %H:%M}" if last else ""


def _estimate(
    case: _Case,
    identity: Identity,
    part: Part,
    weights_bytes: int,
    runs: int,
    download_bytes: int,
    install: bool,
) -> Estimate:
    row = case.context.database.connection.execute(
        "SELECT finished_unix_ms - started_unix_ms, finished_unix_ms FROM runs WHERE run_id LIKE ?"
        " AND started_unix_ms > 0 ORDER BY finished_unix_ms DESC LIMIT 1",
        (f"bench-{identity.cell_id}-r%",),
    ).fetchone()
    if row is not None and not (download_bytes or install):
        day = f"{datetime.fromtimestamp(row[1] / 1000):%Y-%m-%d}"
        return from_earlier(row[0] / 1000 + 2.0, runs, day)
    gpu_cores = case.facts.apple.gpu_cores if case.facts.apple else None
    chip = find_chip(identity.chip, gpu_cores)
    return guess(part, weights_bytes, chip.bandwidth_gb_per_second if chip else None, runs, download_bytes, install)


def model_path(spec: ServiceSpec) -> str:
    """The file or folder that a service serves, as its command line names it; "" where it names none."""
    for option, value in zip(spec.arguments, spec.arguments[1:], strict=False):
        if option in MODEL_OPTIONS and value.startswith("/"):
            return value
    return next((word for word in spec.arguments if word.startswith("/")), "")


def _service_url(spec: ServiceSpec) -> str:
    address = WILDCARD_ADDRESSES.get(spec.bind_address, spec.bind_address)
    return base_url(address, spec.port).removesuffix("/v1")


def _located(facts: HostFacts, artifact: ModelArtifact) -> ModelArtifact:
    if not artifact.local_path.startswith("./"):
        return artifact
    return artifact.model_copy(update={"local_path": f"{facts.layout.model_dir}/{artifact.local_path[2:]}"})


def _tokenizer_beside(path: str) -> str:
    """A folder model holds its tokenizer; beside a GGUF file there may be one."""
    return path.rsplit("/", 1)[0] if path.endswith(".gguf") else path


def _tokenizer(case: _Case, resolved: ResolvedModel, artifact: ModelArtifact, path: str) -> tuple[str, Step | None]:
    """A folder with tokenizer.json: of the model itself, or fetched from its repository in another format."""
    if artifact.format != GGUF:
        return path, None
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
    return _tokenizer_beside(path), None


def _stopped(host: str, model: str, action: CellAction, problem: Problem) -> PlannedCell:
    return PlannedCell(shown=BenchCell(host=host, model=model, action=action, reason=problem.message, problem=problem))


async def _endpoint_cells(context: FleetContext, request: BenchRequest, suite: Suite) -> list[PlannedCell]:
    """A server that somebody else runs: measured over HTTP from its own host, never stopped."""
    name, _, port_text = request.endpoint.rpartition(":")
    if not name or not port_text.isdigit():
        raise OperationError("usage", f"--endpoint takes HOST:PORT, not {request.endpoint!r}", usage=True)
    (host,) = context.select(name)[:1]
    state = await gather_state(context, host)
    if isinstance(state, Problem):
        return [_stopped(host.name, "", CellAction.FAIL, state)]
    port = int(port_text)
    async with context.pool.client(host) as agent:
        servers = await agent.find_servers((port,))
    server = next((one for one in servers if one.port == port), None)
    ours = next((status.spec.name for status in state.services if status.spec.port == port), None)
    if server is None and ours is not None:
        problem = Problem(code="no-server", message=f"port {port} of {host.name} is our own {ours}",
                          remedy=f"fleet bench {ours} --hosts {host.name} --client llama-benchy")  # fmt: skip
        return [_stopped(host.name, ours, CellAction.FAIL, problem)]
    if server is None or server.needs_key:
        why = "asks for a key" if server else "no model server answers"
        problem = Problem(code="no-server", message=f"{why} on port {port} of {host.name}", remedy="fleet ps --foreign")
        return [_stopped(host.name, "", CellAction.FAIL, problem)]
    model = request.models[0] if request.models else next(iter(server.models), "")
    case = _Case(context, request.model_copy(update={"client": "llama-benchy"}), suite, host, state)
    backend = server.backend or "unknown"
    gpus = tuple(gpu.index for gpu in state.facts.gpus if any(one.pid == server.pid for one in gpu.processes))
    spec = ServiceSpec(name=f"foreign-{port}", backend=backend, tool={"name": server.command or "server"}, port=port,
                       gpu_indices=gpus)  # fmt: skip
    subject = Subject(
        backend=backend,
        installation=Installation(backend=backend, version=server.version, install_key=""),
        model_path="",
        served_model_name=model,
        base_url=f"http://{LOOPBACK}:{port}",
        tokenizer=_tokenizer_beside(model) if model.startswith("/") else "",
    )
    cells = []
    for part in suite.parts:
        try:
            client = client_for(backend, "llama-benchy", part)
            cells.append(
                _planned(case, model, "", f"{host.name}:{port}", subject, client, part, spec, None, foreign_port=port)
            )
        except (BackendError, _Stop) as error:
            cells.append(_stopped(host.name, model, _action_of(error), problem_of_cell(error)))
    return cells
