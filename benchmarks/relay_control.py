"""A controller of relays in this process: the product's own conductor between the pipes of a lab's relays."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.relay_lab import RelayLab
from fleet_agent.relay.control import Complete, Event, event_line
from fleet_controller.distributing import messages
from fleet_controller.distributing.conductor import Conductor, ConductorState, Instruction
from fleet_controller.distributing.messages import FolderSource, HubSource
from fleet_controller.distributing.model import Member
from fleet_controller.pulling.tally import HostTally


class LabController:
    """Hears every relay but those that are cut off from it, and orders what the conductor says.

    Its own end and return are simulated by away() and restart(): all that it takes along is the stored state, and the
    agents tell it once more what their relays are at.
    """

    def __init__(
        self,
        members: Sequence[Member],
        head: str,
        source: HubSource | FolderSource | None = None,
        fallback: HubSource | None = None,
    ) -> None:
        sources: dict[str, HubSource | FolderSource] = {} if source is None else {head: source}
        state = ConductorState(members=tuple(members), head=head, sources=sources, fallback=fallback)
        self.conductor = Conductor(state)
        self.lab: RelayLab[Any] | None = None
        self.cut: set[str] = set()
        self.tallies: dict[str, HostTally] = {}  # what was moved, whoever hears of it
        self.fetched_bytes: dict[str, int] = {}  # of the process that is done
        self._away = False
        self._listening: dict[str, messages.Listening] = {}
        self._complete: dict[str, messages.Complete] = {}
        self._dead: set[str] = set()
        self.completed_at: dict[str, float] = {}  # monotonic seconds
        self.changes: list[tuple[float, str]] = []  # (monotonic seconds, why the topology changed)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    def hear(self, name: str, event: Event) -> None:
        """What a relay told; given to a RelayLab as its on_event."""
        if isinstance(event, Complete):
            self.completed_at.setdefault(name, time.monotonic())
            self.fetched_bytes[name] = event.fetched_bytes
        told = messages.parse_event(event_line(event))
        with self._lock:
            self.tallies.setdefault(name, HostTally()).hear(told)
            self._note(name, told)
        self._observe(name, told)

    def _note(self, name: str, told: messages.Event) -> None:
        """What its agent can tell again."""
        if isinstance(told, messages.Listening):
            self._listening[name] = told
            self._complete.pop(name, None)
            self._dead.discard(name)
        elif isinstance(told, messages.Complete):
            self._complete[name] = told
        elif isinstance(told, messages.Failed):
            self._dead.add(name)

    def ended(self, name: str) -> None:
        """The agent of that host says that its relay is no more."""
        self._dead.add(name)
        self._observe(name, messages.Ended())

    def _observe(self, name: str, event: messages.Event) -> None:
        with self._changed:
            if name in self.cut or self._away:
                return
            self._carry_out(self.conductor.observe(name, event, time.monotonic()))
            self._changed.notify_all()

    def begin(self) -> float:
        """Sends the first routes; when that was."""
        assert self.lab is not None
        for relay in self.lab.relays.values():
            relay.port()
        self.wait_for(lambda state: set(self.lab.relays) <= set(state.peers), 30.0)  # type: ignore[union-attr]
        with self._lock:
            started = time.monotonic()
            self._carry_out(self.conductor.begin())
        return started

    def _carry_out(self, instructions: Sequence[Instruction]) -> None:
        assert self.lab is not None
        reasons = self.conductor.state.reasons
        self.changes += [(time.monotonic(), why) for why in reasons[len(self.changes) :]]
        for name, order in instructions:
            relay = self.lab.relays.get(name)
            if relay is not None and name not in self.cut:
                relay.send(messages.order_line(order))

    def wait_for(self, check: Callable[[ConductorState], bool], seconds: float) -> float:
        """When the state was first as wanted. Raises TimeoutError with what happened."""
        with self._changed:
            if not self._changed.wait_for(lambda: check(self.conductor.state), seconds):
                raise TimeoutError(f"not within {seconds:g} s; {self.describe()}")
            return time.monotonic()

    def wait_until_complete(self, names: Sequence[str], seconds: float) -> float:
        return self.wait_for(lambda state: set(names) <= state.complete, seconds)

    def repeat(self, name: str) -> None:
        """A host can be heard again: it tells what it is at, and is told once more, since it may have missed orders."""
        with self._changed:
            self._hear_again(name)
            self._carry_out([(host, order) for host, order in self.conductor.again() if host == name])
            self._changed.notify_all()

    def away(self) -> None:
        """As if the controller had been killed."""
        self._away = True

    def restart(self) -> None:
        """As if the controller had been killed and started again: only what it had stored is left."""
        with self._changed:
            stored = self.conductor.state.model_dump_json()
            self.conductor, self._away = Conductor(ConductorState.model_validate_json(stored)), False
            self._carry_out(self.conductor.again())
            for name in self._listening:
                if name not in self.cut:
                    self._hear_again(name)
            self._changed.notify_all()

    def _hear_again(self, name: str) -> None:
        told: list[messages.Event] = []
        listening, known = self._listening[name], self.conductor.state.peers.get(name)
        if known is None or (known.address, known.port) != (listening.address, listening.port):
            told.append(listening)
        if name in self._complete:
            told.append(self._complete[name])
        if name in self._dead:
            told.append(messages.Ended())
        for event in told:
            self._carry_out(self.conductor.observe(name, event, time.monotonic()))

    def describe(self) -> str:
        state = self.conductor.state
        last = {
            name: f"{samples[-1].verified_bytes} of {samples[-1].total_bytes} from {samples[-1].upstream or 'nobody'}"
            for name, samples in self.conductor.history.items()
        }
        return f"complete: {sorted(state.complete)}; changes: {[why for _, why in self.changes]}; {last}"
