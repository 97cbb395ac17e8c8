"""Ending asyncio tasks of ours."""

import asyncio

_AGAIN_SECONDS = 0.5


async def end_task(task: "asyncio.Task[None]") -> None:
    """Cancels a task and waits until it has ended; its exception, if any, is dropped.

    Before Python 3.12 asyncio.wait_for loses a cancellation that arrives together with the result it waits for
    (python/cpython#86296), so one cancel() is not enough: it is repeated until the task has ended.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_AGAIN_SECONDS)
    if not task.cancelled():
        task.exception()
