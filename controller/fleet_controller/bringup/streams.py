"""Many hosts at once: each has a stream of events of its own, and one that is down blocks no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing

from fleet_controller.domain.base import Problem
from fleet_controller.domain.events import HostEvent
from fleet_controller.fanout import merged
from fleet_controller.transport.errors import HostKeyUnknown, TransportError
from fleet_inventory.hosts import Host

HOSTS_AT_ONCE = 32

HostStream = Callable[[Host], AsyncGenerator[HostEvent]]


async def over_hosts(
    hosts: Iterable[Host], stream: HostStream, at_once: int = HOSTS_AT_ONCE
) -> AsyncGenerator[HostEvent]:
    """The events of all hosts as they come, ending with one `done` event a host, whatever went wrong there."""
    gate = asyncio.Semaphore(at_once)

    async def gated(host: Host) -> AsyncGenerator[HostEvent]:
        async with gate, aclosing(guarded(host, stream)) as events:
            async for event in events:
                yield event

    async with aclosing(merged([gated(host) for host in hosts])) as events:
        async for event in events:
            yield event


async def guarded(host: Host, stream: HostStream) -> AsyncGenerator[HostEvent]:
    """One host's events; an error becomes its last event, with the stage that it was in."""
    stage = "connect"
    try:
        async with aclosing(stream(host)) as events:
            async for event in events:
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


async def stream_of(work: Callable[[Callable[[HostEvent], None]], Awaitable[None]]) -> AsyncGenerator[HostEvent]:
    """Runs a coroutine that reports through a callback, and yields what it reports as it comes."""
    queue: asyncio.Queue[HostEvent | None] = asyncio.Queue()

    async def run() -> None:
        try:
            await work(queue.put_nowait)
        finally:
            queue.put_nowait(None)

    task = asyncio.create_task(run())
    try:
        while (event := await queue.get()) is not None:
            yield event
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
