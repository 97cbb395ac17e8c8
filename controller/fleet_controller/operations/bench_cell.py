"""One cell as it will run and as it is shown: the steps, what they take, and the runs that are still to do."""

from fleet_controller.backends.base import Installation
from fleet_controller.benchmarking.cells import PlannedCell, test_names
from fleet_controller.benchmarking.clients import Client, Subject, install_client
from fleet_controller.benchmarking.devices import overlap
from fleet_controller.benchmarking.keys import with_api_key
from fleet_controller.benchmarking.suites import Part
from fleet_controller.domain.base import EnvironmentVariable, Problem
from fleet_controller.domain.benches import BenchCell, CellAction
from fleet_controller.domain.services import ServiceSpec, ServiceStatus
from fleet_controller.domain.steps import BenchServer, BenchStep, DeviceWatch, GeneratedModel, Step
from fleet_controller.operations.bench_case import Case, CellStopped, in_the_way
from fleet_controller.operations.bench_identity import identity_of
from fleet_controller.operations.bench_kept import estimated, kept_runs
from fleet_controller.planning.render import render

PATIENT_SECONDS = 7 * 24 * 3600.0


def planned_cell(
    case: Case,
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
    generated: GeneratedModel | None = None,
) -> PlannedCell:
    installation = install_client(case.facts, client, subject.installation, case.request.offline_folder)
    paused = _paused(case, spec, running.spec.name if running is not None else "")
    job_environment = tuple(
        EnvironmentVariable(name=key, value=value) for key, value in sorted(case.host.environment.items())
    )
    step = _step(case, subject, client, part, spec, running, installation, job_environment, serve, foreign_port)
    step = step.model_copy(update={"generated": generated})
    identity = identity_of(case, name, quantization, artifact, digest, subject, client, part, spec, step)
    measuring = Step(name=f"measure with {client.name}", bench=step)
    of_client = installation.steps if installation is not subject.installation else ()
    steps = (*prepare, *of_client, measuring)
    present, when = kept_runs(case.context, identity.cell_id)
    wanted = max(case.request.repeat, 1)
    last = present + wanted if case.request.again else max(wanted, present)
    ordinals = tuple(range(present + 1, last + 1))
    estimate = estimated(
        case, identity, part, weights_bytes, max(len(ordinals), 1), download_bytes,
        builds(steps),
    )  # fmt: skip
    extra_disk = installation.disk_bytes if installation is not subject.installation else 0
    waits = tuple(
        f"waits for {lease.title}, which measures there now"
        for lease in case.facts.leases
        if overlap(lease.gpu_indices, spec.gpu_indices)
    )
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
        paused_services=paused,
        foreign=foreign_port > 0,
        commands=render(case.facts, steps, None, job_environment),
        warnings=(*warnings, *waits),
        gpu_indices=spec.gpu_indices,
    )
    return PlannedCell(
        shown=shown,
        identity=identity,
        steps=steps,
        environment=job_environment,
        disk_needed_bytes=disk_bytes + extra_disk,
        ordinals=ordinals,
        discarded=1 if subject.discards_first and client.name == "llama-bench" else 0,
        run_seconds=estimate.seconds / max(len(ordinals), 1),
        weights_bytes=weights_bytes,
    )


def builds(steps: tuple[Step, ...]) -> bool:
    """Whether an engine is made on the host, which takes minutes."""
    return any(step.python_environment or step.cmake_build for step in steps)


def _paused(case: Case, spec: ServiceSpec, measured: str) -> tuple[str, ...]:
    """Services of ours that stop meanwhile. Raises CellStopped where nobody allowed that."""
    names = in_the_way(case, spec.gpu_indices, measured)
    if names and not case.request.pause_services:
        problem = Problem(code="busy", message=f"busy: our own {', '.join(names)} runs there",
                          remedy="--pause-services stops it and brings it back, or: fleet stop")  # fmt: skip
        raise CellStopped(CellAction.REFUSE, problem)
    return tuple(names)


def _step(
    case: Case,
    subject: Subject,
    client: Client,
    part: Part,
    spec: ServiceSpec,
    running: ServiceStatus | None,
    installation: Installation,
    job_environment: tuple[EnvironmentVariable, ...],
    serve: bool,
    foreign_port: int,
) -> BenchStep:
    """The client's step with all that it needs to know of the host, the server and the suite."""
    measured = running.spec.name if running is not None else ""
    step = client.step(subject, part, installation)
    step = step.model_copy(
        update={
            "watch": _watch(case, spec.gpu_indices),
            "server": server_of(spec) if serve else None,
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
    return step


def _watch(case: Case, gpu_indices: tuple[int, ...]) -> DeviceWatch:
    idle = case.suite.idle
    return DeviceWatch(
        gpu_indices=gpu_indices,
        idle_wait_seconds=PATIENT_SECONDS if case.request.when_idle else idle.wait_seconds,
        foreign_cpu_percent=idle.foreign_cpu_percent,
    )


def server_of(spec: ServiceSpec) -> BenchServer:
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
