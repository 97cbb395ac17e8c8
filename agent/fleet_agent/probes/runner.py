"""Times the probes and keeps them apart: what one does, raises or never finishes hurts no other.

Each probe has a daemon thread of its own: a call that hangs in a driver can neither be cancelled nor waited for.
"""

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

from fleet_agent.probes.model import NoData, Outcome, Probe, ProbeContext, ProbeResult


class ProbeRunner:
    """Runs probes; one that still hangs from an earlier call is not started a second time."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Future[ProbeResult]] = {}

    async def run(self, probes: Sequence[Probe], context: ProbeContext) -> tuple[ProbeResult, ...]:
        """Results in the order of `probes`, after at most the longest of their limits. Raises nothing of a probe's."""
        return tuple(await asyncio.gather(*(self._run_one(probe, context) for probe in probes)))

    async def _run_one(self, probe: Probe, context: ProbeContext) -> ProbeResult:
        future = self._running.get(probe.name)
        if future is None:
            future = self._start(probe, context)
        done, _ = await asyncio.wait((future,), timeout=probe.limit_seconds)
        if done:
            return future.result()
        detail = f"no answer within {probe.limit_seconds:g} s"
        return ProbeResult(probe.name, probe.limit_seconds, Outcome.TIMED_OUT, detail)

    def _start(self, probe: Probe, context: ProbeContext) -> "asyncio.Future[ProbeResult]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ProbeResult] = loop.create_future()
        self._running[probe.name] = future

        def finish(result: ProbeResult) -> None:
            self._running.pop(probe.name, None)
            if not future.done():
                future.set_result(result)

        def work() -> None:
            result = take(probe, context)
            try:
                loop.call_soon_threadsafe(finish, result)
            except RuntimeError:
                return  # the loop is closed: the agent is ending, nobody asks any more

        threading.Thread(target=work, name=f"probe-{probe.name}", daemon=True).start()
        return future


def take(probe: Probe, context: ProbeContext) -> ProbeResult:
    """Runs one probe here and now, timed; whatever it raises becomes part of the result."""
    started = time.monotonic()
    facts: Any = None
    try:
        facts = probe.read(context)
        outcome, detail = Outcome.OK, ""
    except NoData as error:
        outcome, detail = Outcome.NO_DATA, str(error)
    except Exception as error:
        outcome, detail = Outcome.FAILED, f"{type(error).__name__}: {error}".splitlines()[0]
    return ProbeResult(probe.name, time.monotonic() - started, outcome, detail, facts)
