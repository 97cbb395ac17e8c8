"""Blocking work beside the event loop, which nobody has to wait for once it is no longer wanted."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

Result = TypeVar("Result")


async def in_daemon_thread(function: Callable[..., Result], *arguments: Any) -> Result:
    """As asyncio.to_thread, but a cancelled caller is free at once.

    A pool's threads are joined when the loop closes and again when the process ends: Ctrl-C would seem to do nothing
    for as long as a slow model hub keeps one of them.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Result] = loop.create_future()

    def deliver(result: Result | None, error: BaseException | None) -> None:
        if outcome.done():  # the caller is gone
            return
        if error is None:
            outcome.set_result(result)  # type: ignore[arg-type]
        else:
            outcome.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = function(*arguments)
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(deliver, result, error)

    threading.Thread(target=work, name=getattr(function, "__name__", "work"), daemon=True).start()
    return await outcome
