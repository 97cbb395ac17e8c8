"""Looking at what a server holds of memory once it answers, to keep it beside what was predicted."""

import re
import time
from collections.abc import Sequence

from fleet_controller.domain.memory import MemoryObservation
from fleet_controller.domain.plan import FitLine
from fleet_controller.domain.services import ServiceState
from fleet_controller.memory_store import save_observation
from fleet_controller.operations.context import FleetContext
from fleet_controller.planning.devices import device_name
from fleet_controller.planning.fitting.observing import observation_of
from fleet_controller.transport.errors import TransportError
from fleet_inventory.hosts import Host

# A server tells its buffers while it starts: that is within its first lines, and the log may hold several starts.
LOG_LINES = 2000


async def observe_memory(
    context: FleetContext, host: Host, service: str, lines: Sequence[FitLine]
) -> MemoryObservation | None:
    """Looks at what a service holds that has just answered, and keeps it beside what its plan predicted.

    None where there is nothing to learn, or the host cannot be asked: a deploy does not fail for it.
    """
    try:
        async with context.pool.client(host) as agent:
            facts, services = await agent.facts(), await agent.list_services()
            status = next((item for item in services if item.spec.name == service), None)
            if status is None or status.state is not ServiceState.READY:
                return None
            chunks = [chunk async for chunk in agent.read_log(service, LOG_LINES)]
    except TransportError:
        return None
    gpus = tuple(gpu for gpu in facts.gpus if gpu.index in status.spec.gpu_indices)
    log = _last_start(b"".join(chunks).decode("utf-8", errors="replace"))
    now_ms = int(time.time() * 1000)
    found = observation_of(lines, status, device_name(facts, gpus), log, host.name, now_ms)
    if found is not None:
        save_observation(context.database, found)
    return found


def _last_start(log: str) -> str:
    """What was printed since the agent's last note of a start; all of it where no note is kept."""
    starts = [found.start() for found in re.finditer(r"^\[fleet\] \S+ start: ", log, re.MULTILINE)]
    return log[starts[-1] :] if starts else log
