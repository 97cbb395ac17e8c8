"""Many hosts at once: each has a stream of events of its own, and one that is down blocks no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

from fleet_controller.domain.base import Problem
from fleet_controller.domain.events import HostEvent
from fleet_controller.transport.errors import HostKeyUnknown, TransportError
from fleet_inventory.hosts import Host

HOSTS_AT_ONCE = 32

HostStream = Callable[[Host], AsyncIterator[HostEvent]]


async def over_hosts(
    hosts: Iterable[Host], stream: HostStream, at_once: int = HOSTS_AT_ONCE
) -> AsyncIterator[HostEvent]:
    """The events of all hosts as they come, ending with one `done` event a host, whatever went wrong there."""
    queue: asyncio.Queue[HostEvent | None] = asyncio.Queue()
    gate = asyncio.Semaphore(at_once)

    async def run(host: Host) -> None:
        try:
            async with gate:
                async for event in guarded(host, stream):
                    queue.put_nowait(event)
        finally:
            queue.put_nowait(None)

    tasks = [asyncio.create_task(run(host)) for host in hosts]
    remaining = len(tasks)
    try:
        while remaining:
            event = await queue.get()
            if event is None:
                remaining -= 1
            else:
                yield event
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def guarded(host: Host, stream: HostStream) -> AsyncIterator[HostEvent]:
    """One host's events; an error becomes its last event, with the stage that it was in."""
    stage = "connect"
    try:
        async for event in stream(host):
            stage = event.stage or stage
            yield event
    except HostKeyUnknown as error:
        yield HostEvent(
            host=host.name, stage=stage, message=error.problem.message, done=True,
            problem=error.problem, host_key=error.question,
        )  # fmt: skip
    except TransportError as error:
        yield failed(host, stage, error.problem)
    except (OSError, ValueError) as error:
        yield failed(host, stage, Problem(code="bring-up-failed", message=f"{type(error).__name__}: {error}"))


def failed(host: Host, stage: str, problem: Problem) -> HostEvent:
    return HostEvent(host=host.name, stage=stage, message=problem.message, done=True, problem=problem)
