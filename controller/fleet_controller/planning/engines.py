"""Plans about engines themselves: pure, as plan.py is: installing a version, and moving services to it."""

import hashlib
import json
from collections.abc import Callable

from fleet_controller.backends import backend_for
from fleet_controller.backends.base import BackendError, Installation, InstallRequest
from fleet_controller.domain.base import EnvironmentVariable, Frozen, Problem
from fleet_controller.domain.engines import (
    EnginesAction,
    EnginesRequest,
    EnginesVerdict,
    HostEnginesPlan,
    ServiceMove,
)
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.plan import PlannedCommand
from fleet_controller.domain.services import DesiredState, ServiceSpec, ToolRun
from fleet_controller.domain.sizes import gibibytes
from fleet_controller.domain.steps import JobSpec, ToolRef
from fleet_controller.planning.devices import visible_gpus
from fleet_controller.planning.engine_removal import plan_collection, plan_removal
from fleet_controller.planning.engine_state import EngineState, Move, PlannedEngines, stopped
from fleet_controller.planning.jobs import smoke_job
from fleet_controller.planning.render import render
from fleet_controller.planning.service import same_service
from fleet_inventory.hosts import Host


class Needs(Frozen):
    """What a service's model asks of a backend beyond the backend itself, as its catalog entry has it."""

    version: str = ""
    requirements: tuple[str, ...] = ()


def plan_engines(
    host: Host, state: EngineState, request: EnginesRequest, needs_of: Callable[[ServiceSpec], Needs]
) -> PlannedEngines:
    """What a request means on one host. Never raises for what a user can cause: the plan says it."""
    if request.action is EnginesAction.REMOVE:
        return PlannedEngines(plan=plan_removal(host.name, state, request))
    if request.action is EnginesAction.COLLECT:
        return PlannedEngines(plan=plan_collection(host.name, state, request))
    try:
        return _plan_install(host, state, request, needs_of)
    except BackendError as error:
        problem = Problem(code=error.code, message=error.message, remedy=error.remedy)
        verdict = EnginesVerdict.REFUSE if error.refused else EnginesVerdict.FAIL
        return stopped(host.name, verdict, problem)


def _plan_install(
    host: Host, state: EngineState, request: EnginesRequest, needs_of: Callable[[ServiceSpec], Needs]
) -> PlannedEngines:
    facts = state.facts
    unsupported = backend_for(request.backend, request.version).unsupported_reason(facts)
    if unsupported:
        raise BackendError("backend-unsupported", unsupported, "leave this host out")
    main = _installation(host, facts, request, Needs())
    moves: list[Move] = []
    installations = {main.install_key: main}
    if request.action is EnginesAction.UPGRADE and not request.install_only:
        for spec in _movable(state, request.backend):
            target = _installation(host, facts, request, needs_of(spec))
            installations.setdefault(target.install_key, target)
            move = _move(state, spec, target)
            moves += [move] if move else []
    missing = [item for item in installations.values() if item.steps]
    disk_bytes = sum(item.disk_bytes for item in missing)
    full = _disk_problem(facts, disk_bytes)
    if full:
        return stopped(host.name, EnginesVerdict.REFUSE, full)
    jobs = tuple(install_job(host, facts, item) for item in missing)
    plan = HostEnginesPlan(
        host=host.name,
        verdict=EnginesVerdict.CHANGE if jobs or moves else EnginesVerdict.KEEP,
        reason=_install_reason(main, moves),
        backend=main.backend,
        version=main.version,
        install_key=main.install_key,
        install_needed=bool(jobs),
        disk_bytes=disk_bytes,
        commands=_commands(facts, jobs, moves),
        moves=tuple(_shown(move) for move in moves),
        warnings=(*main.warnings, *_warnings(state, request)),
    )
    return PlannedEngines(plan=plan, jobs=jobs, moves=tuple(moves))


def _installation(host: Host, facts: HostFacts, request: EnginesRequest, needs: Needs) -> Installation:
    """As a deploy would install it. A model's own version counts where the user names none."""
    version = request.version or needs.version
    backend = backend_for(request.backend, version)
    wanted = InstallRequest(
        version=version,
        engine_path=request.engine_path,
        gpus=visible_gpus(facts, host.environment) if backend.uses_gpus(facts) else (),
        requirements=needs.requirements,
        offline_folder=request.offline_folder,
        installer=request.installer,
        newest=request.action is EnginesAction.UPGRADE,
    )
    return backend.plan_install(facts, wanted)


def _movable(state: EngineState, backend: str) -> list[ServiceSpec]:
    wanted = [status.spec for status in state.services if status.desired is DesiredState.RUNNING]
    return [spec for spec in wanted if spec.backend == backend and spec.tool.install_key]


def _move(state: EngineState, spec: ServiceSpec, target: Installation) -> Move | None:
    """The same service on another install; one that a cut-off command left there unproven is taken up again."""
    if spec.tool.install_key == target.install_key:
        begun = (move for move in state.unfinished if move.new.name == spec.name and same_service(move.new, spec))
        return next(begun, None)
    new = {
        "tool": _on(spec.tool, spec, target),
        "backend_version": target.version,
        "before_start": _runs_on(spec.before_start, spec, target),
        "after_stop": _runs_on(spec.after_stop, spec, target),
    }
    return Move(old=spec, new=spec.model_copy(update=new))


def _runs_on(runs: tuple[ToolRun, ...], spec: ServiceSpec, target: Installation) -> tuple[ToolRun, ...]:
    return tuple(run.model_copy(update={"tool": _on(run.tool, spec, target)}) for run in runs)


def _on(tool: ToolRef, spec: ServiceSpec, target: Installation) -> ToolRef:
    """The same program of the other install; a program of something else stays what it is."""
    same = tool.install_key == spec.tool.install_key
    return tool.model_copy(update={"install_key": target.install_key}) if same else tool


def unknown_options(facts: HostFacts, spec: ServiceSpec) -> tuple[str, ...]:
    """Options of a service's command line that its install does not list in its own help; () where nobody knows."""
    engine = next((one for one in facts.engines if one.install_key == spec.tool.install_key), None)
    if engine is None or not engine.flags:
        return ()
    given = dict.fromkeys(word.split("=")[0] for word in spec.arguments if word.startswith("--"))
    return tuple(option for option in given if option not in engine.flags)


def _shown(move: Move) -> ServiceMove:
    return ServiceMove(
        service=move.new.name,
        from_version=move.old.backend_version,
        from_install_key=move.old.tool.install_key,
        to_version=move.new.backend_version,
        to_install_key=move.new.tool.install_key,
    )


def _install_reason(main: Installation, moves: list[Move]) -> str:
    text = (
        f"{main.backend} {main.version}".strip() + " is installed already" if not main.steps else "not installed here"
    )
    if main.steps and not main.install_key and main.version:
        text = "it keeps versions of its own"
    return f"{text}; {len(moves)} service(s) to move" if moves else text


def _warnings(state: EngineState, request: EnginesRequest) -> tuple[str, ...]:
    if request.action is not EnginesAction.UPGRADE or request.install_only:
        return ()
    still = [s.spec for s in state.services if s.spec.backend == request.backend and s.desired is DesiredState.STOPPED]
    return tuple(f"{spec.name} is stopped and stays on {spec.backend} {spec.backend_version}" for spec in still)


def _commands(facts: HostFacts, jobs: tuple[JobSpec, ...], moves: list[Move]) -> tuple[PlannedCommand, ...]:
    found: list[PlannedCommand] = []
    for job in jobs:
        found += render(facts, job.steps, None, job.environment)
    for move in moves:
        smoke = smoke_job(facts, move.new)
        found += render(facts, smoke.steps if smoke else (), move.new)
    return tuple(found)


def install_job(host: Host, facts: HostFacts, installation: Installation) -> JobSpec:
    """`install-<backend>-<16 hex>` over the machine and the whole job: the same work is the same job."""
    environment = (EnvironmentVariable(name=name, value=value) for name, value in sorted(host.environment.items()))
    job = JobSpec(
        job_id="",
        title=f"install {installation.backend} {installation.version}".strip(),
        steps=installation.steps,
        disk_needed_bytes=installation.disk_bytes,
        environment=tuple(environment),
    )
    identity = {"machine": facts.machine_id, "job": job.model_dump(mode="json", exclude_none=True)}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
    return job.model_copy(update={"job_id": f"install-{installation.backend}-{digest}"})


def _disk_problem(facts: HostFacts, needed: int) -> Problem | None:
    disk = next((disk for disk in facts.disks if disk.purpose == "engines"), None)
    if disk is None or disk.free_bytes is None or needed <= disk.free_bytes:
        return None
    message = f"{disk.path} has {gibibytes(disk.free_bytes)} free, {gibibytes(needed)} are needed"
    return Problem(code="disk-full", message=message, remedy="fleet backends gc may free some")
