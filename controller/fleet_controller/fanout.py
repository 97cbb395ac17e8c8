"""Many hosts at once: bounded, and in the order in which they answer."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Beyond this many handshakes at once two cores only queue them.
CONCURRENT_HOSTS = 64
# What may wait for a slow reader, over all streams: a log is read faster than a terminal takes it.
WAITING_ITEMS = 256


async def as_they_finish(
    items: Iterable[Item], work: Callable[[Item], Awaitable[Result]], concurrent: int = CONCURRENT_HOSTS
) -> AsyncGenerator[Result]:
    """The result of `work` for each item as it comes. `work` raises nothing that is expected of a host."""
    gate = asyncio.Semaphore(concurrent)

    async def gated(item: Item) -> Result:
        async with gate:
            return await work(item)

    tasks = [asyncio.create_task(gated(item)) for item in items]
    try:
        for finished in asyncio.as_completed(tasks):
            yield await finished
    finally:
        await _cancel(tasks)


async def merged(streams: Iterable[AsyncGenerator[Result]]) -> AsyncGenerator[Result]:
    """What all streams say, as it comes; ends when the last one ends. A slow reader holds the streams back."""
    queue: asyncio.Queue[Result | None] = asyncio.Queue()
    room = asyncio.Semaphore(WAITING_ITEMS)

    async def pump(stream: AsyncGenerator[Result]) -> None:
        try:
            async with aclosing(stream):
                async for item in stream:
                    await room.acquire()
                    queue.put_nowait(item)
        finally:
            queue.put_nowait(None)

    tasks = [asyncio.create_task(pump(stream)) for stream in streams]
    open_streams = len(tasks)
    try:
        while open_streams:
            item = await queue.get()
            if item is None:
                open_streams -= 1
            else:
                room.release()
                yield item
        await asyncio.gather(*tasks)  # raises what a pump met
    finally:
        await _cancel(tasks)


async def _cancel(tasks: Iterable[asyncio.Task[object]] | list[asyncio.Task[Result]]) -> None:
    pending = [task for task in tasks if not task.done()]
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
