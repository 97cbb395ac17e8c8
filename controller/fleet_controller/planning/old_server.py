"""What becomes of the server that a replace finds: it goes on until the new one is ready, where both have room.

The agent decides in the end, by what is free then and by the same rules (its services/succession.py).
"""

from itertools import pairwise

from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.services import ServiceSpec, ServiceState, ServiceStatus
from fleet_controller.domain.sizes import gibibytes
from fleet_controller.planning.devices import memory_pool
from fleet_controller.planning.service import same_service

KEPT = "the old server goes on until the new one is ready"


def what_becomes_of(
    running: ServiceStatus, new: ServiceSpec, facts: HostFacts, services: tuple[ServiceStatus, ...]
) -> str:
    """For people; empty where no server runs. `services` are all of the host, `running` among them."""
    if running.state in (ServiceState.STOPPED, ServiceState.FAILED, ServiceState.BACKING_OFF):
        return ""
    successor = running.successor
    if successor is not None and successor.state is not ServiceState.FAILED and same_service(successor.spec, new):
        return f"{KEPT}, which is on its way already"
    reason = _reason_to_end_first(running, new) or _shortage(new, facts, services)
    if reason:
        return f"the old server ends first: {reason}"
    if new.port != running.spec.port:
        return f"{KEPT} on port {new.port}"
    return f"{KEPT}, which is proven on another port first; then a gap while it starts on {new.port}"


def _reason_to_end_first(running: ServiceStatus, new: ServiceSpec) -> str:
    old = running.spec
    if running.state is not ServiceState.READY:
        return f"it is {running.state.value.removeprefix('SERVICE_STATE_').lower()}"
    if old.shared_port_path or new.shared_port_path:
        return "several services share its server"
    if any((old.before_start, old.after_stop, new.before_start, new.after_stop)):
        return "what is run around its start serves one of them only"
    if new.port == old.port and tuple(pairwise(new.arguments)).count(("--port", str(new.port))) != 1:
        return f"the new one cannot be tried on another port than {new.port}"
    return ""


def _shortage(new: ServiceSpec, facts: HostFacts, services: tuple[ServiceStatus, ...]) -> str:
    """All that runs is counted, the old server too."""
    gpus = tuple(gpu for gpu in facts.gpus if gpu.index in new.gpu_indices)
    free = memory_pool(facts, gpus, services).free_bytes
    if not new.promised_memory_bytes:
        return "how much memory the new one takes is not known"
    if free is None:
        return "how much memory is free is not known"
    short = new.promised_memory_bytes - free
    return f"needs {gibibytes(short)} more than is free" if short > 0 else ""
