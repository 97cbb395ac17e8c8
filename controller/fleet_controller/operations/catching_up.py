"""What a resident controller does by itself: it goes on with rollouts whose process died, and changes hosts that were
away once they answer, where that was asked for.

A rollout that somebody paused, aborted, superseded or undid is left alone, and so is one that its failures stopped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable

from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.rollouts import Rollout, RolloutState
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.problems import OperationError
from fleet_controller.operations.rollout_changes import undo
from fleet_controller.operations.rollouts import carry_out
from fleet_controller.rolling.next_step import caught_up, hosts_to_catch_up
from fleet_controller.rolling.store import RolloutStore
from fleet_controller.transport.errors import TransportError

# One that was begun a moment ago may not have its lock yet.
SETTLED_SECONDS = 5.0
# A host that stays away is asked after twice as long each time, up to so many times the usual wait.
LONGEST_WAIT_FACTOR = 16

logger = logging.getLogger(__name__)


class CatchUp:
    """Looks every `settings.catch_up_seconds`, from its start on; `run` ends when it is cancelled."""

    def __init__(self, context: FleetContext, clock: Callable[[], float] = time.monotonic) -> None:
        self._context = context
        self._store = RolloutStore(context.database)
        self._every_seconds = context.settings.catch_up_seconds
        self._clock = clock
        self._waits: dict[str, tuple[float, float]] = {}  # host: when it is asked next, and the wait after that
        self._works: dict[int, asyncio.Task[None]] = {}

    async def run(self) -> None:
        try:
            while True:
                try:
                    await self.look()
                except Exception:
                    logger.exception("looking for rollouts to go on with failed")
                await asyncio.sleep(self._every_seconds)
        finally:
            for task in self._works.values():
                task.cancel()
            await asyncio.gather(*self._works.values(), return_exceptions=True)

    async def look(self) -> None:
        """Begins what is to be gone on with; returns before that ends."""
        if not self._context.settings.database_file.exists():
            return
        for rollout in self._store.unfinished():
            if self._is_orphan(rollout):
                logger.info("rollout %d (%s) is %s and nobody is at it: going on", rollout.number, rollout.title,
                            rollout.state.value)  # fmt: skip
                self._begin(rollout.number, lambda one=rollout: self._go_on(one))  # type: ignore[misc]
        for rollout in self._store.with_hosts_away():
            if rollout.number not in self._works and self._wanted(rollout):
                self._begin(rollout.number, lambda number=rollout.number: self._catch_up(number))  # type: ignore[misc]

    def _is_orphan(self, rollout: Rollout) -> bool:
        # An undo that could not undo every host says so, and waits for its user.
        goes_on = rollout.state is RolloutState.RUNNING or (
            rollout.state is RolloutState.UNDOING and not rollout.reason
        )
        settled = time.time() - rollout.created_unix_ms / 1000 > SETTLED_SECONDS
        return goes_on and settled and rollout.number not in self._works and not self._is_carried_out(rollout.number)

    def _is_carried_out(self, number: int) -> bool:
        keys = (("rollout", str(number)), ("undo", str(number)))
        ours = any(self._context.running.digest_of(key) is not None for key in keys)
        return ours or self._store.is_carried_out(number)

    def _begin(self, number: int, work: Callable[[], Awaitable[None]]) -> None:
        async def do() -> None:
            try:
                await work()
            except OperationError as error:  # another process was faster, or the lab changed
                logger.info("rollout %d: %s", number, error.problem.message)
            except Exception:
                logger.exception("rollout %d could not be gone on with", number)
            finally:
                self._works.pop(number, None)

        self._works[number] = asyncio.create_task(do())

    async def _go_on(self, rollout: Rollout) -> None:
        number = rollout.number
        if rollout.state is RolloutState.UNDOING:
            running = self._context.running
            await _log(number, running.join(("undo", str(number)), "", lambda: undo(self._context, number)))
        else:
            await _log(number, carry_out(self._context, number))

    def _wanted(self, rollout: Rollout) -> list[str]:
        """Hosts to ask now whether they are back."""
        others = (*self._store.of_service(rollout.service), *self._store.unfinished())
        now = self._clock()
        known = self._context.inventory().hosts
        hosts = [name for name in hosts_to_catch_up(rollout, others) if name in known]
        return [name for name in hosts if self._waits.get(name, (0.0, 0.0))[0] <= now]

    async def _catch_up(self, number: int) -> None:
        rollout = self._store.get(number)
        asked = self._wanted(rollout) if rollout is not None else []
        answers = await asyncio.gather(*(self._answers(name) for name in asked))
        back = [name for name, answered in zip(asked, answers, strict=True) if answered]
        with self._store.carrying_out(number) as ours:
            rollout = self._store.get(number)
            others = (*self._store.of_service(rollout.service), *self._store.unfinished()) if rollout else ()
            still = set(back) & set(hosts_to_catch_up(rollout, others)) if rollout is not None else set()
            if rollout is None or not ours or not still:
                return
            self._store.save(caught_up(rollout, still))
        logger.info("rollout %d (%s): %s is back", number, rollout.title, ", ".join(sorted(still)))
        await _log(number, carry_out(self._context, number))

    async def _answers(self, name: str) -> bool:
        """Whether the host's agent answers; one that does not is asked less and less often."""
        try:
            async with self._context.pool.client(self._context.inventory().hosts[name]) as agent:
                await agent.list_services()
        except (TransportError, OSError) as error:
            logger.debug("%s is still away: %s", name, error)
        else:
            self._waits.pop(name, None)
            return True
        wait = self._waits.get(name, (0.0, self._every_seconds))[1]
        longest = self._every_seconds * LONGEST_WAIT_FACTOR
        self._waits[name] = (self._clock() + wait, min(wait * 2, longest))
        return False


async def _log(number: int, events: AsyncGenerator[HostEvent]) -> None:
    """What a user at a terminal would see at the end of each host."""
    async for event in events:
        if event.done:
            said = f"{event.problem.code}: {event.problem.message}" if event.problem is not None else event.message
            logger.info("rollout %d: %s: %s", number, event.host, said)
