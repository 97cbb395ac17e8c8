"""A supervisor of services for tests: restarts quickly, knows no device but what the test says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Sequence

from fleet_agent.configuration import AgentConfiguration
from fleet_agent.layout import Layout
from fleet_agent.services.admission import Devices
from fleet_agent.services.logs import LogLimits
from fleet_agent.services.model import ServiceState, ServiceStatus
from fleet_agent.services.supervisor import ServiceSupervisor
from fleet_agent.services.transitions import RestartPolicy

PATIENT = 30.0  # seconds; a hung test ends, no assertion is on speed
QUICK = RestartPolicy(first_delay_seconds=0.05, longest_delay_seconds=0.2, stable_seconds=60.0, quick_exit_limit=3)


class NoDevices:
    """A host whose devices are what the test says."""

    def __init__(self, strangers: Sequence[str] = (), free: int | None = None) -> None:
        self.said, self.free = strangers, free

    def strangers(self, gpu_indices: Sequence[int], own_pids: Collection[int]) -> Sequence[str]:
        return self.said

    def free_bytes(self, gpu_indices: Sequence[int]) -> int | None:
        return self.free

    def used_bytes(self, pids: Collection[int]) -> int | None:
        return None


@contextlib.asynccontextmanager
async def running(
    layout: Layout, devices: Devices | None = None, log_limits: LogLimits | None = None
) -> AsyncIterator[ServiceSupervisor]:
    """A started supervisor; it is closed at the end, and leaves its servers running."""
    supervisor = ServiceSupervisor(layout, AgentConfiguration(), QUICK, log_limits, devices or NoDevices())
    await supervisor.start()
    try:
        yield supervisor
    finally:
        await supervisor.close()


async def until(
    supervisor: ServiceSupervisor, accept: Callable[[ServiceStatus], bool] | ServiceState, name: str = "tiny"
) -> ServiceStatus:
    """The first status that is accepted."""

    async def find() -> ServiceStatus:
        async for status in supervisor.watch(name):
            if status.state is accept if isinstance(accept, ServiceState) else accept(status):
                return status
        raise AssertionError("the service was removed")

    return await asyncio.wait_for(find(), PATIENT)


def ready_again(former: ServiceStatus) -> Callable[[ServiceStatus], bool]:
    """Accepts a ready server that is not the former one."""
    return lambda status: status.state is ServiceState.READY and status.process != former.process


def pid_of(status: ServiceStatus) -> int:
    """The server's pid; there must be one."""
    assert status.process is not None
    return status.process.pid
