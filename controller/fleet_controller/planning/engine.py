"""Which install of a backend a service runs on, and on which GPUs."""

from fleet_controller.backends import Backend
from fleet_controller.backends.base import BackendError, Installation, InstallRequest, Preallocates, installed
from fleet_controller.domain.facts import GpuFacts, HostFacts
from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.resolved import ResolvedModel
from fleet_controller.domain.services import ServiceStatus
from fleet_controller.planning.problem import PlanProblem


def computing_gpus(
    backend: Backend,
    facts: HostFacts,
    visible: tuple[GpuFacts, ...],
    resolved: ResolvedModel,
    tensor_parallel: int | None = None,
) -> tuple[GpuFacts, ...]:
    """The GPUs that a service of this backend would compute on: all visible ones that the model can be dealt to, or as
    many of them as were asked for. Raises PlanProblem where it cannot be dealt to so many.
    """
    if not backend.uses_gpus(facts):
        return ()
    shape = resolved.shape or next((item.shape for item in resolved.artifacts if item.shape), None)
    if tensor_parallel is not None and isinstance(backend, Preallocates):
        if tensor_parallel > len(visible):
            message = f"--tensor-parallel {tensor_parallel}: {len(visible)} GPU(s) can be used on this host"
            raise PlanProblem("tensor-parallel", message, "ask for fewer, or leave it out", refused=True)
        if shape is not None and shape.tensor_parallel_size(tensor_parallel) != tensor_parallel:
            message = f"{resolved.name} cannot be dealt to {tensor_parallel} GPUs: its heads do not divide by that"
            possible = shape.tensor_parallel_size(tensor_parallel)
            raise PlanProblem("tensor-parallel", message, f"--tensor-parallel {possible} can be had", refused=True)
        return visible[:tensor_parallel]
    if shape is None or not isinstance(backend, Preallocates):
        return visible
    return visible[: shape.tensor_parallel_size(len(visible))]


def choose_installation(
    facts: HostFacts,
    backend: Backend,
    gpus: tuple[GpuFacts, ...],
    request: DeployRequest,
    resolved: ResolvedModel,
    running: ServiceStatus | None,
) -> Installation:
    """The engine asked for, else the pinned one; but a service keeps an engine of another version that it runs on.

    A newer pin, or a host where binaries were adopted, is no reason to change under a running model.
    Raises BackendError.
    """
    overrides = resolved.overrides_for(backend.name)
    version = request.backend_version or overrides.version
    wanted = InstallRequest(
        version=version,
        engine_path=request.engine_path,
        gpus=gpus,
        requirements=overrides.requirements,
        offline_folder=request.offline_folder,
        installer=request.installer,
    )
    present = running.spec if running is not None and running.spec.backend == backend.name else None
    is_open = not request.backend_version and not request.engine_path
    if present is None or not is_open or installed(facts, present.tool.install_key) is None:
        return backend.plan_install(facts, wanted)
    kept = Installation(backend=backend.name, version=present.backend_version, install_key=present.tool.install_key)
    try:
        pinned = backend.plan_install(facts, wanted)
    except BackendError:
        return kept
    if pinned.version == present.backend_version:
        return pinned
    note = f"stays on {backend.name} {kept.version}; --backend-version changes it (new deploys take {pinned.version})"
    return kept.model_copy(update={"warnings": (note,)})


def with_flags(facts: HostFacts, installation: Installation) -> Installation:
    """The install with the options that its build is known to have."""
    engine = installed(facts, installation.install_key)
    return installation if engine is None else installation.model_copy(update={"flags": engine.flags})
