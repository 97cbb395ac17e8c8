"""A replace that keeps the old server: the new one is started beside it, and takes its place once it is READY.

Where the new one has a port of its own, it is the service from the moment on in which it is READY, and the former ends
then. Where it wants the former's port, it is proven on another one first; then both end, and it starts on its own
port, its files still in memory: clients keep their address, for the time of one start. One attempt: whatever goes
wrong before READY, the former goes on, and the service's status says why.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import math
import random
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from fleet_agent.problem import ProblemError
from fleet_agent.process import is_alive
from fleet_agent.services.journal import Remains, ServiceRecord, Successor
from fleet_agent.services.managed import DEFAULT_GRACE_SECONDS, ManagedService, ServiceContext
from fleet_agent.services.model import DesiredState, Problem, ServiceSpec, ServiceState
from fleet_agent.services.transitions import Condition
from fleet_agent.tasks import end_task

_PORT_OPTION = "--port"
# Below those that kernels give to outgoing connections: none of them may take it before the server listens.
_TRIAL_PORTS = range(20000, 32768)
_TRIAL_PORT_TRIES = 50

_logger = logging.getLogger(__name__)


def reason_to_end_first(former: ServiceRecord, spec: ServiceSpec) -> str:
    """Why the two cannot run beside each other, whatever the memory; empty where they can."""
    if former.condition.state is not ServiceState.READY:
        return f"it is {former.condition.state.value}"
    if former.spec.shared_port_path or spec.shared_port_path:
        return "several services share its server"
    if any((former.spec.before_start, former.spec.after_stop, spec.before_start, spec.after_stop)):
        return "what is run around its start serves one of them only"
    if spec.port == former.spec.port and on_port(spec, spec.port) is None:
        return f"its command line does not show how to try it on another port than {spec.port}"
    return ""


def on_port(spec: ServiceSpec, port: int) -> ServiceSpec | None:
    """The same server on another port; None where its arguments do not name it exactly once, as `--port N`."""
    old = str(spec.port)
    pairs = enumerate(itertools.pairwise(spec.arguments))
    places = [place + 1 for place, (option, value) in pairs if (option, value) == (_PORT_OPTION, old)]
    values = [value for _, value in spec.environment]
    others = [word for place, word in enumerate(spec.arguments) if place not in places]
    if len(places) != 1 or any(_names_port(text, old) for text in (*others, *values)):
        return None
    arguments = tuple(str(port) if place == places[0] else word for place, word in enumerate(spec.arguments))
    return replace(spec, port=port, arguments=arguments)


def _names_port(text: str, port: str) -> bool:
    return text == port or text.endswith((f":{port}", f"={port}")) or f":{port}/" in text


def free_port(bind_address: str, taken: frozenset[int]) -> int:
    """A port that nobody listens on now, and that no service of ours claims. Raises ProblemError."""
    family = socket.AF_INET6 if ":" in bind_address else socket.AF_INET
    for port in random.sample(_TRIAL_PORTS, _TRIAL_PORT_TRIES):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as trial:
                trial.bind((bind_address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            message = f"no port of {bind_address} to try the new server on: {error.strerror}"
            raise ProblemError(
                "address-unusable", message, "use 127.0.0.1, or an address that this host has"
            ) from error
        if port not in taken:
            return port
    raise ProblemError("port-taken", "no free port to try the new server on", "stop a service, or deploy again")


class Succession:
    """One server on its way to take a service's place. All its methods belong to the services' event loop."""

    def __init__(self, service: ManagedService, successor: Successor, context: ServiceContext) -> None:
        self.service = service
        self.spec = successor.spec
        policy = replace(context.policy, quick_exit_limit=1, stable_seconds=math.inf)
        self.server = ManagedService(
            successor.server, replace(context, journal=_Within(self), policy=policy), service.log.beside()
        )
        self.task: asyncio.Task[None] | None = None

    @property
    def moves(self) -> bool:
        """Whether it is tried on the port that it will have: another one than the former's."""
        return self.server.record.spec.port == self.spec.port

    def note(self, *, persist: bool) -> None:
        """Raises OSError where it is to be written and cannot."""
        self.service.keep_successor(Successor(self.spec, self.server.record), persist=persist)

    async def proven(self) -> Problem | None:
        """Waits for its end as a successor: None = READY, else why it is not."""
        async for status in self.server.watch():
            self.note(persist=False)
            if status.state is ServiceState.READY:
                return None
            if status.state in (ServiceState.FAILED, ServiceState.BACKING_OFF, ServiceState.STOPPED):
                return status.problem or Problem("start-failed", "it ended before it was ready")
        return Problem("start-failed", "it was removed")

    async def hand_over(self) -> bool:
        """It is the service from now on. False where it died or nothing could be written: the former goes on."""
        await self.server.release()
        process = self.server.record.process
        if self.server.state is not ServiceState.READY or process is None or not is_alive(process):
            return False
        await self.service.release()
        try:
            self.service.become(self._record())
        except OSError as error:
            _logger.error("%s: its journal could not be written: %s", self.spec.name, error)
            self.service.resume()
            return False
        return True

    def _record(self) -> ServiceRecord:
        former, tried = self.service.record, self.server.record
        leaving = (*former.leaving, Remains(former.token, former.process, former.spec.port))
        if self.moves:
            return replace(tried, spec=self.spec, leaving=leaving)
        # The trial ends first: its memory is needed, and the former serves meanwhile.
        leaving = (Remains(tried.token, tried.process, tried.spec.port), *leaving)
        return ServiceRecord(self.spec, DesiredState.RUNNING, Condition(ServiceState.STARTING), leaving=leaving)

    async def give_up(self, problem: Problem) -> None:
        """Ends it; the former's status says why from now on."""
        at = f"{datetime.now().astimezone():%H:%M %Z}"
        problem = replace(problem, message=f"{problem.message} (given up at {at})")
        await self._halt()
        condition = replace(self.server.record.condition, state=ServiceState.FAILED)
        failed = replace(self.server.record, condition=condition, problem=problem)
        self._keep(Successor(self.spec, failed))

    async def drop(self) -> None:
        """Ends it, and nothing is said: something else is wanted now."""
        await self._halt()
        self._keep(None)
        self.server.log.remove()

    def forget(self) -> None:
        """The service tells no more of one that was given up."""
        self._keep(None)

    async def _halt(self) -> None:
        try:
            await self.server.halt(DEFAULT_GRACE_SECONDS)
        except ProblemError as error:  # the kernel holds it: nothing that an agent could do
            _logger.error("%s: %s", self.spec.name, error)

    def _keep(self, successor: Successor | None) -> None:
        try:
            self.service.keep_successor(successor)
        except OSError as error:
            _logger.error("%s: its journal could not be written: %s", self.spec.name, error)
            self.service.keep_successor(successor, persist=False)


@dataclass(frozen=True)
class _Within:
    """Where a successor's record is kept: inside that of the service."""

    succession: Succession

    def write(self, record: ServiceRecord) -> None:
        succession = self.succession
        succession.service.keep_successor(Successor(succession.spec, record))


class Successions:
    """Those under way, by the service's name; `lock` is held by whoever calls for a name, and taken for a hand-over.

    `unbroken` carries a change to its end, whoever goes away; `settled` hears of the spec that is no more.
    """

    def __init__(
        self,
        context: ServiceContext,
        lock: Callable[[str], asyncio.Lock],
        unbroken: Callable[[Coroutine[Any, Any, None]], Awaitable[None]],
        settled: Callable[[ServiceSpec], None],
    ) -> None:
        self._context = context
        self._lock, self._unbroken, self._settled = lock, unbroken, settled
        self._under_way: dict[str, Succession] = {}

    def servers(self) -> Iterator[ManagedService]:
        """The servers on their way: their memory and devices count as those of any service."""
        return (one.server for one in tuple(self._under_way.values()))

    def ports(self) -> Iterator[tuple[str, int]]:
        """Each service's name with the port where its successor is tried."""
        return ((name, one.server.record.spec.port) for name, one in self._under_way.items())

    def spec_of(self, name: str) -> ServiceSpec | None:
        """What is on its way to be this service."""
        one = self._under_way.get(name)
        return one.spec if one is not None else None

    def begin(self, service: ManagedService, spec: ServiceSpec, trial: ServiceSpec) -> None:
        """Writes the intent and starts `trial` beside the service. Raises OSError (journal); then nothing began."""
        server = ServiceRecord(trial, DesiredState.RUNNING, Condition(ServiceState.STARTING))
        one = Succession(service, Successor(spec, server), self._context)
        one.note(persist=True)
        one.server.log.remove()
        _logger.info("%s: its successor is started beside it, on port %d", spec.name, trial.port)
        self._go_on(one)

    def adopt(self, service: ManagedService) -> None:
        """Goes on with what the journal has, where it was not given up."""
        successor = service.record.successor
        if successor is None or successor.server.condition.state is ServiceState.FAILED:
            return
        # That it was ready once says nothing: it has to answer again before the former ends.
        condition = replace(successor.server.condition, state=ServiceState.STARTING, ready_at=None)
        server = replace(successor.server, condition=condition)
        self._go_on(Succession(service, Successor(successor.spec, server), self._context))

    def _go_on(self, one: Succession) -> None:
        self._under_way[one.spec.name] = one
        one.server.adopt()
        one.task = asyncio.ensure_future(self._follow(one))

    async def _follow(self, one: Succession) -> None:
        try:
            problem = await one.proven()
            await self._unbroken(self._settle(one, problem))
        except Exception:
            _logger.exception("%s: its succession failed", one.spec.name)
            await self._unbroken(self._settle(one, Problem("internal-error", "the agent's supervision of it failed")))

    async def _settle(self, one: Succession, problem: Problem | None) -> None:
        name = one.spec.name
        async with self._lock(name):
            if self._under_way.get(name) is not one:
                return
            former = one.service.record.spec
            if problem is None and not await one.hand_over():
                problem = Problem("start-failed", "it ended right after it was ready", "deploy again")
            if problem is not None:
                await one.give_up(problem)
            elif not one.moves:
                one.server.log.remove()
            del self._under_way[name]
            _logger.info("%s: %s", name, problem.message.splitlines()[0] if problem else "its successor took over")
            self._settled(one.spec if problem else former)

    async def end(self, service: ManagedService) -> None:
        """Nothing takes this service's place any more. The caller holds the lock of its name."""
        one = self._under_way.pop(service.name, None)
        if one is None:
            if service.record.successor is not None:  # it was given up; what it printed is kept
                Succession(service, service.record.successor, self._context).forget()
            return
        if one.task is not None:
            await end_task(one.task)
        await one.drop()
        self._settled(one.spec)

    async def unfollow(self) -> None:
        """No hand-over begins any more; one that has begun is a change that goes to its end."""
        for one in tuple(self._under_way.values()):
            if one.task is not None:
                await end_task(one.task)

    async def release(self) -> None:
        """After unfollow(): stops watching the servers. They go on, and the next agent goes on with them."""
        for one in tuple(self._under_way.values()):
            await one.server.release()
