"""The plan of one host: pure and deterministic, so that it can be shown before it runs and repeated without harm."""

from fleet_controller.backends import Backend
from fleet_controller.backends.base import BackendError, Installation, KeepsModels, SharesServer
from fleet_controller.domain.addresses import is_loopback
from fleet_controller.domain.artifacts import Artifact
from fleet_controller.domain.base import Frozen, Problem
from fleet_controller.domain.facts import GpuFacts, HostFacts
from fleet_controller.domain.plan import DeployRequest, FitVerdict, HostPlan, PlanAction
from fleet_controller.domain.resolved import ResolvedModel
from fleet_controller.domain.services import DesiredState, ServiceSpec, ServiceState, ServiceStatus
from fleet_controller.domain.sizes import gibibytes
from fleet_controller.domain.steps import JobSpec, Step
from fleet_controller.planning.candidates import Choice, choose
from fleet_controller.planning.considering import Decider, decided, gpus_by_backend
from fleet_controller.planning.devices import busy_text, foreign_processes, memory_pool, refuse_leased
from fleet_controller.planning.engine import choose_installation, with_flags
from fleet_controller.planning.fit_at import beyond_its_context
from fleet_controller.planning.jobs import WILDCARD_ADDRESSES, model_steps, prepare_job, retried, smoke_job
from fleet_controller.planning.old_server import what_becomes_of
from fleet_controller.planning.problem import PlanProblem
from fleet_controller.planning.render import render
from fleet_controller.planning.service import changes, choose_port, same_service, service_spec
from fleet_controller.planning.usable import backend_as_asked
from fleet_controller.planning.wishes import as_asked, filled
from fleet_inventory.hosts import Host

__all__ = ["PlannedDeployment", "plan_host", "retried", "same_service", "unreachable_plan"]


class PlannedDeployment(Frozen):
    """A host's plan and the jobs that carry it out: `prepare` (install, model files), then the service of the plan is
    applied, then `smoke_test` (None where the server listens on no loopback address). Both are None where nothing is
    to be done. Their ids are derived from the machine and
    the work, so that sending them again re-attaches; where one has ended, `retried` gives the next id.
    """

    plan: HostPlan
    prepare: JobSpec | None = None
    smoke_test: JobSpec | None = None
    left_out: tuple[tuple[str, ...], ...] = ()


class _Work(Frozen):
    """What was decided for a host before it is written down."""

    choice: Choice
    installation: Installation
    spec: ServiceSpec
    steps: tuple[Step, ...]
    download_bytes: int
    warnings: tuple[str, ...] = ()
    left_out: tuple[tuple[str, ...], ...] = ()


def plan_host(
    host: Host,
    facts: HostFacts,
    services: tuple[ServiceStatus, ...],
    request: DeployRequest,
    resolved: ResolvedModel,
    cached: tuple[Artifact, ...] = (),
    decider: Decider | None = None,
) -> PlannedDeployment:
    """What deploying `resolved` would do on a host. Never raises for what a user can cause: the plan says it.

    `services` are those the agent knows now, `cached` the hub artifacts it holds (they are not downloaded again).
    `decider` takes a backend and quantization where they are open; without one fleet's own order counts.
    """
    name = request.service_name or resolved.name
    running = next((status for status in services if status.spec.name == name), None)
    present = running.spec if running is not None and _is_up(running) else None
    try:
        resolved = located(facts, resolved)
        wanted = filled(request, resolved, present) if present is not None else request
        model = as_asked(resolved, wanted, present)
        kept = _kept(host, facts, services, wanted, model, running, decider)
        if kept is not None:
            return kept
        work = _decide(host, facts, services, wanted, model, running, cached, decider)
        if work.choice.fit.verdict is FitVerdict.REFUSED and wanted.context_length != request.context_length:
            # The context it runs with fits no longer beside what was asked for: choose one, and say so.
            shorter = wanted.model_copy(update={"context_length": None})
            work = _decide(host, facts, services, shorter, model, running, cached, decider)
    except PlanProblem as problem:
        action = PlanAction.REFUSE if problem.refused else PlanAction.FAIL
        return _stopped(host.name, action, problem.problem)
    except BackendError as error:
        problem_found = Problem(code=error.code, message=error.message, remedy=error.remedy)
        return _stopped(host.name, PlanAction.REFUSE if error.refused else PlanAction.FAIL, problem_found)
    if work.choice.fit.verdict is FitVerdict.REFUSED:
        return _does_not_fit(host.name, work)
    return _planned(host, facts, services, work, running)


def located(facts: HostFacts, resolved: ResolvedModel) -> ResolvedModel:
    """Paths that start with "./" lie in the host's model folder. Raises PlanProblem where it has none."""
    relative = [item for item in resolved.artifacts if item.local_path.startswith("./")]
    if relative and not facts.layout.model_dir:
        message = f"{relative[0].local_path} is a path in the model folder, and this host has none"
        raise PlanProblem("no-model-folder", message, "set model_dir for it in hosts.yaml, then `fleet up` it again")
    located = tuple(
        item.model_copy(
            update={
                "local_path": f"{facts.layout.model_dir}/{item.local_path[2:]}",
                "local_parts": tuple(f"{facts.layout.model_dir}/{part[2:]}" for part in item.local_parts),
            }
        )
        if item in relative
        else item
        for item in resolved.artifacts
    )
    return resolved.model_copy(update={"artifacts": located})


def unreachable_plan(host_name: str, problem: Problem) -> PlannedDeployment:
    """The plan of a host whose facts could not be had."""
    return _stopped(host_name, PlanAction.FAIL, problem)


def _stopped(host_name: str, action: PlanAction, problem: Problem) -> PlannedDeployment:
    return PlannedDeployment(plan=HostPlan(host=host_name, action=action, reason=problem.message, problem=problem))


def _is_up(status: ServiceStatus) -> bool:
    ended = (ServiceState.STOPPED, ServiceState.FAILED)
    return status.desired is DesiredState.RUNNING and status.state not in ended


def _kept(
    host: Host,
    facts: HostFacts,
    services: tuple[ServiceStatus, ...],
    request: DeployRequest,
    resolved: ResolvedModel,
    running: ServiceStatus | None,
    decider: Decider | None,
) -> PlannedDeployment | None:
    """KEEP where the running service is what the request means; what that left open is filled in as it runs now.

    What was chosen by live memory once (quantization, context) must not change because the model itself now fills it.
    """
    if running is None or not _is_up(running) or (running.problem is not None and running.problem.code == "no-secret"):
        return None
    spec = running.spec
    try:
        work = _decide(host, facts, services, request, resolved, running, (), decider, check_busy=False)
    except (PlanProblem, BackendError):
        return None
    if not same_service(work.spec, spec):
        return None
    reason = f"already runs exactly so on port {spec.port} ({state_word(running.state)})"
    plan = _host_plan(host.name, PlanAction.KEEP, reason, work)
    unchanged = {"service": spec, "download_bytes": 0, "install_needed": False}
    return PlannedDeployment(plan=plan.model_copy(update=unchanged), left_out=work.left_out)


def state_word(state: ServiceState) -> str:
    """SERVICE_STATE_BACKING_OFF is "backing off"."""
    return state.value.removeprefix("SERVICE_STATE_").replace("_", " ").lower()


def _decide(
    host: Host,
    facts: HostFacts,
    services: tuple[ServiceStatus, ...],
    request: DeployRequest,
    resolved: ResolvedModel,
    running: ServiceStatus | None,
    cached: tuple[Artifact, ...],
    decider: Decider | None,
    *,
    check_busy: bool = True,
) -> _Work:
    used = gpus_by_backend(host, facts, request, resolved)
    pools = {name: memory_pool(facts, gpus, services, running) for name, gpus in used.items()}
    choice = decided(host, facts, services, request, resolved, running, decider) if decider else None
    choice = choice or choose(facts, request, resolved, pools, host.limits.memory_reserve_bytes)
    backend, gpus = backend_as_asked(choice.backend, request, resolved), used[choice.backend]
    if check_busy:
        if not _joins_server(backend, services):
            refuse_leased(facts, tuple(gpu.index for gpu in gpus))
            _refuse_busy(facts, gpus)
        _refuse_too_many(host, services, running)
    installation = with_flags(facts, choose_installation(facts, backend, gpus, request, resolved, running))
    port = choose_port(host, request, services, running, backend)
    spec, left_out = service_spec(host, facts, gpus, request, resolved, choice, installation, port)
    files_steps, download_bytes = model_steps(host, facts, backend, choice.artifact, cached)
    return _Work(
        choice=choice,
        installation=installation,
        spec=spec,
        # A file that should be there is looked for at once: an engine may take half an hour to build.
        steps=(*files_steps, *installation.steps)
        if choice.artifact.local_path
        else (*installation.steps, *files_steps),
        download_bytes=download_bytes,
        warnings=(
            *_warnings(gpus, request, resolved, choice, installation),
            *(f"this build of {backend.name} does not know {words[0]}: it is left out" for words in left_out),
        ),
        left_out=left_out,
    )


def _joins_server(backend: Backend, services: tuple[ServiceStatus, ...]) -> bool:
    """Whether a server of the backend's own already serves a model of ours: then it is what is seen on the device."""
    if not isinstance(backend, SharesServer):
        return False
    return any(status.spec.backend == backend.name and _is_up(status) for status in services)


def _refuse_busy(facts: HostFacts, gpus: tuple[GpuFacts, ...]) -> None:
    foreign = foreign_processes(gpus)
    if not foreign:
        return
    busy_indices = sorted({gpu.index for gpu in gpus for process in gpu.processes if process in foreign})
    idle = [str(gpu.index) for gpu in gpus if gpu.index not in busy_indices]
    message = "; ".join(busy_text(process, facts.taken_unix_ms) for process in foreign)
    remedy = (
        f"GPU {', '.join(idle)} is idle: set CUDA_VISIBLE_DEVICES={','.join(idle)} for this host in hosts.yaml"
        if idle
        else "wait until it has ended, or ask its owner; fleet never ends what it did not start"
    )
    raise PlanProblem("busy", message, remedy, refused=True)


def _refuse_too_many(host: Host, services: tuple[ServiceStatus, ...], running: ServiceStatus | None) -> None:
    limit = host.limits.max_services
    others = [status for status in services if status is not running and status.desired is DesiredState.RUNNING]
    if limit is not None and len(others) >= limit:
        names = ", ".join(status.spec.name for status in others)
        message = f"limits.max_services of this host is {limit}, and {names} already run there"
        raise PlanProblem("too-many-services", message, "stop one of them with `fleet stop`", refused=True)


def _warnings(
    gpus: tuple[GpuFacts, ...],
    request: DeployRequest,
    resolved: ResolvedModel,
    choice: Choice,
    installation: Installation,
) -> tuple[str, ...]:
    fit, backend = choice.fit, backend_as_asked(choice.backend, request, resolved)
    found = [*resolved.warnings, *installation.warnings]
    if isinstance(backend, KeepsModels) and (note := backend.store_warning(choice.artifact)):
        found.append(note)
    if fit.verdict is FitVerdict.FITS_WITH_OFFLOAD:
        hint = choice.fully_fitting_context
        rest = f"; --context {hint} would fit entirely" if hint else ""
        found.append(f"{gibibytes(fit.offload_bytes)} of the model lie on the CPU, which is much slower{rest}")
        found.append(f"the part on the CPU: {fit.offload_cost}")
    if fit.unknown:
        found.append(f"fit not fully judged: {fit.unknown}")
    if not request.context_length and choice.context_tokens < choice.longest_context:
        most = choice.fully_fitting_context
        longer = f"; the longest that does is {most} (--context)" if most and most > choice.context_tokens else ""
        found.append(f"context {choice.context_tokens}: {choice.longest_context} does not fit{longer}")
    if too_long := beyond_its_context(resolved, choice.artifact, choice.context_tokens):
        found.append(too_long)
    if not backend.memory_use(1, 0, bool(gpus)).context_is_enforced:
        found.append(f"{backend.name} does not limit the context: memory is planned for {choice.context_tokens} tokens")
    if request.speculative and not resolved.overrides_for(backend.name).speculative:
        found.append(f"no speculative settings are known for {resolved.name} on {backend.name}: it runs without")
    if any(not gpu.processes_known for gpu in gpus):
        found.append("the driver does not tell who uses the GPU, so it may be busy")
    address = request.bind_address
    if address and not is_loopback(address) and address not in WILDCARD_ADDRESSES:
        found.append(f"no smoke test: the agent asks over loopback, and the server listens on {address} only")
    return (*found, *resolved.overrides_for(backend.name).known_problems)


def _does_not_fit(host_name: str, work: _Work) -> PlannedDeployment:
    fit = work.choice.fit
    what = f"{work.spec.name} {work.choice.artifact.quantization}".strip()
    message = f"{what} does not fit at context {work.choice.context_tokens}: {fit.summary()}"
    if work.choice.fully_fitting_context:
        message += f"; the longest context that fits is {work.choice.fully_fitting_context}"
    problem = Problem(
        code="does-not-fit",
        message=message,
        remedy="choose a smaller --quant or --context, another host, or stop what uses the memory (`fleet ps`)",
    )
    plan = _host_plan(host_name, PlanAction.REFUSE, message, work)
    return PlannedDeployment(plan=plan.model_copy(update={"problem": problem, "service": None}))


def _planned(
    host: Host, facts: HostFacts, services: tuple[ServiceStatus, ...], work: _Work, running: ServiceStatus | None
) -> PlannedDeployment:
    full = _disk_problem(facts, work)
    if full is not None:
        return _stopped(host.name, PlanAction.REFUSE, full)
    # All model bytes: the agent takes off what its cache holds by then, and the job's id must not depend on that.
    disk_needed_bytes = work.installation.disk_bytes + work.choice.artifact.download_bytes()
    prepare = prepare_job(host, facts, work.spec, work.steps, disk_needed_bytes)
    smoke_test = smoke_job(facts, work.spec)
    replaces = running is not None and running.desired is DesiredState.RUNNING
    action = PlanAction.REPLACE if replaces else PlanAction.START
    reason = changes(running.spec, work.spec) if running is not None and replaces else "not running here"
    old_server = what_becomes_of(running, work.spec, facts, services) if running is not None and replaces else ""
    if running is not None and replaces and not _is_up(running):
        reason = f"{state_word(running.state)}; starting it anew"
    plan = _host_plan(host.name, action, reason, work)
    commands = render(
        facts, (*prepare.steps, *(smoke_test.steps if smoke_test else ())), work.spec, prepare.environment
    )
    return PlannedDeployment(
        plan=plan.model_copy(update={"commands": commands, "old_server": old_server}),
        prepare=prepare,
        smoke_test=smoke_test,
        left_out=work.left_out,
    )


def _host_plan(host_name: str, action: PlanAction, reason: str, work: _Work) -> HostPlan:
    choice = work.choice
    return HostPlan(
        host=host_name,
        action=action,
        reason=reason,
        backend=choice.backend,
        backend_version=work.installation.version,
        quantization=choice.artifact.quantization,
        context_length=choice.context_tokens,
        port=work.spec.port,
        fit=choice.fit.verdict,
        fit_lines=choice.fit.lines,
        free_bytes=choice.fit.free_bytes,
        memory_kind=choice.fit.memory_kind,
        download_bytes=work.download_bytes,
        service=work.spec,
        warnings=work.warnings,
        install_needed=bool(work.installation.steps),
        because=choice.because,
        longest_context=choice.fully_fitting_context or 0,
    )


def _disk_problem(facts: HostFacts, work: _Work) -> Problem | None:
    """Asked of the disk before any download; the agent asks again right before it writes."""
    for purpose, needed in (("models", work.download_bytes), ("engines", work.installation.disk_bytes)):
        disk = next((disk for disk in facts.disks if disk.purpose == purpose), None)
        if disk is not None and disk.free_bytes is not None and needed > disk.free_bytes:
            message = f"{disk.path} has {gibibytes(disk.free_bytes)} free, {gibibytes(needed)} are needed"
            remedy = "free some space, or move the folder in hosts.yaml"
            return Problem(code="disk-full", message=message, remedy=remedy)
    return None
