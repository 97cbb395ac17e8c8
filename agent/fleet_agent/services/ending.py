"""Ending a server whose successor waits for its port: it may finish its answers, and is not waited for in vain.

A server that is asked to end while it answers closes its port first. Some then finish what they answer; llama-server
drops it, and waits for the clients to hang up, which they do not. One that listens no more and does no work has
nothing left to finish.
"""

import asyncio
import contextlib
import signal
import time

from fleet_agent.process import ProcessIdentity, send_signal, terminate_tree, tree_members
from fleet_agent.services.admission import listens
from fleet_agent.services.journal import Remains
from fleet_agent.services.launch import NOBODY, TOKEN_VARIABLE
from fleet_agent.services.readiness import ProgressMeter, measure

IDLE_SECONDS = 1.0
_LOOK_SECONDS = 0.1


async def end_remains(remains: Remains, grace_seconds: float) -> tuple[ProcessIdentity, ...]:
    """SIGTERM to the whole tree, SIGKILL once it listens no more and was idle for a second, or after the grace.

    Returns the processes that not even SIGKILL ended: normally none.
    """
    marker = f"{TOKEN_VARIABLE}={remains.token}" if remains.token else None
    ending = asyncio.ensure_future(terminate_tree(remains.process or NOBODY, grace_seconds, marker))
    try:
        if remains.process is not None and remains.port:
            await _kill_when_idle(remains.process, remains.port, ending)
        return await ending
    finally:
        if not ending.done():
            ending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ending


async def _kill_when_idle(
    process: ProcessIdentity, port: int, ending: "asyncio.Future[tuple[ProcessIdentity, ...]]"
) -> None:
    meter = ProgressMeter(time.monotonic())
    while not ending.done():
        await asyncio.wait({ending}, timeout=_LOOK_SECONDS)
        members = tree_members(process)
        idle_seconds = meter.observe(measure(members, log_bytes=0), time.monotonic())
        if listens(members, port) is not False:
            meter = ProgressMeter(time.monotonic())
        elif idle_seconds >= IDLE_SECONDS:
            for one in members:
                send_signal(one, signal.SIGKILL)
            return
