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


class LabController:
    """Hears every relay but those that are cut off from it, and orders what the conductor says.

    Its own end and return are simulated by forget(): all that it takes along is the stored state.
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
        self.deaf = False
        self.completed_at: dict[str, float] = {}  # monotonic seconds
        self.changes: list[tuple[float, str]] = []  # (monotonic seconds, why the topology changed)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    def hear(self, name: str, event: Event) -> None:
        """What a relay told; given to a RelayLab as its on_event."""
        if isinstance(event, Complete):
            self.completed_at.setdefault(name, time.monotonic())
        self._observe(name, messages.parse_event(event_line(event)))

    def ended(self, name: str) -> None:
        """The agent of that host says that its relay is no more."""
        self._observe(name, messages.Ended())

    def _observe(self, name: str, event: messages.Event) -> None:
        with self._changed:
            if name in self.cut or self.deaf:
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
        """A host can be heard again: it is told once more, since it may have missed orders."""
        with self._lock:
            self._carry_out([(host, order) for host, order in self.conductor.again() if host == name])

    def restart(self) -> None:
        """As if the controller had been killed and started again: only what it had stored is left."""
        with self._lock:
            stored = self.conductor.state.model_dump_json()
            self.conductor = Conductor(ConductorState.model_validate_json(stored))
            self._carry_out(self.conductor.again())

    def describe(self) -> str:
        state = self.conductor.state
        last = {
            name: f"{samples[-1].verified_bytes} of {samples[-1].total_bytes} from {samples[-1].upstream or 'nobody'}"
            for name, samples in self.conductor.history.items()
        }
        return f"complete: {sorted(state.complete)}; changes: {[why for _, why in self.changes]}; {last}"
