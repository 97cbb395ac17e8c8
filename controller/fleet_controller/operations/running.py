"""Work that outlives the call that started it: it goes on when the terminal is gone, and can be watched again."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from fleet_controller.domain.events import HostEvent
from fleet_controller.operations.problems import problem_of

logger = logging.getLogger(__name__)

# One host's work shows at most this many events to someone who joins later: the newest ones.
REMEMBERED_EVENTS = 200


@dataclass
class _Work:
    digest: str
    events: list[HostEvent] = field(default_factory=list)
    dropped: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    task: asyncio.Task[None] | None = None
    over: bool = False


class RunningWork:
    """At most one piece of work per key, such as (host, service); the same digest joins it, another one is refused."""

    def __init__(self) -> None:
        self._works: dict[tuple[str, ...], _Work] = {}

    def digest_of(self, key: tuple[str, ...]) -> str | None:
        """The digest of what runs under `key`, or None where nothing does."""
        work = self._works.get(key)
        return work.digest if work is not None else None

    @property
    def count(self) -> int:
        return len(self._works)

    async def join(
        self, key: tuple[str, ...], digest: str, start: Callable[[], AsyncGenerator[HostEvent]]
    ) -> AsyncGenerator[HostEvent]:
        """Events of the work under `key`, started here unless it runs. Leaving the iterator leaves the work running."""
        work = self._works.get(key)
        if work is None:
            work = _Work(digest)
            self._works[key] = work
            work.task = asyncio.create_task(self._run(key, work, start))
        position = 0
        while True:
            async with work.changed:
                while not work.over and work.dropped + len(work.events) <= position:
                    await work.changed.wait()
                first = max(position - work.dropped, 0)
                fresh = work.events[first:]
                position = work.dropped + len(work.events)
            for event in fresh:
                yield event
            if work.over and position == work.dropped + len(work.events):
                return

    async def _run(self, key: tuple[str, ...], work: _Work, start: Callable[[], AsyncGenerator[HostEvent]]) -> None:
        host = key[0]
        try:
            async with aclosing(start()) as events:
                async for event in events:
                    await self._publish(work, event)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            logger.exception("%s: work %s failed", host, key)
            await self._publish(work, HostEvent(host=host, done=True, problem=problem_of(error)))
        finally:
            self._works.pop(key, None)
            work.over = True
            async with work.changed:
                work.changed.notify_all()

    async def _publish(self, work: _Work, event: HostEvent) -> None:
        async with work.changed:
            work.events.append(event)
            if len(work.events) > REMEMBERED_EVENTS:
                work.events.pop(0)
                work.dropped += 1
            work.changed.notify_all()

    async def close(self) -> None:
        """Stop following; what runs on the hosts goes on."""
        tasks = [work.task for work in self._works.values() if work.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
