"""What a rollout asks of the hub, whatever dies: no byte twice that a living host holds."""

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_controller.distributing import messages
from fleet_controller.distributing.conductor import Conductor, ConductorState, Instruction
from fleet_controller.distributing.messages import HubSource, Route
from fleet_controller.distributing.model import Fault, Member

NAMES = ("a", "b", "c", "d")
TOTAL = 60_000_000
HUB_RATE = 6_000_000.0
STEP_SECONDS = 0.1
TOLD_EVERY_STEPS = 5
REDIAL_STEPS = 5
LOOKING_STEPS = 4  # how long a relay that was started again reads its part
SLACK = 1.01


@dataclass
class SimulatedRelay:
    """A host: its disk outlives its processes. `rate`: of its link, bytes a second; `phase`: when it tells."""

    rate: float
    phase: int
    delay_steps: int  # of orders on their way to it
    port: int = 0
    alive: bool = False
    part: int = 0
    verified: int = 0
    told: int = 0
    looking: int = 0
    route: Route | None = None
    received: int = 0
    fetched: int = 0  # as `received`, of this process; `asked` of all of them
    asked: int = 0
    lost_since: int = -1
    told_complete: bool = False
    has_source: bool = True
    back_at: int = -1

    @property
    def is_head(self) -> bool:
        return self.alive and self.route is not None and self.route.head is None


class SimulatedLab:
    """Relays that do what they are told a little later, and whose word is up to half a second old."""

    def __init__(self, rates: Sequence[float], delays: Sequence[int]) -> None:
        self.members = tuple(Member(name=name) for name in NAMES)
        self.conductor = Conductor(ConductorState(members=self.members, head="a", fallback=HubSource()))
        self.step = 0
        self.relays = {
            name: SimulatedRelay(rate, number, delay)
            for number, (name, rate, delay) in enumerate(zip(NAMES, rates, delays, strict=True))
        }
        self.underway: list[tuple[int, str, Route]] = []
        self.died_with_their_holder = 0
        self.untold = 0  # what came to a host after its last word before it was killed
        for name in NAMES:
            self.start(name)
        self.carry_out(self.conductor.begin())

    @property
    def asked_of_the_hub(self) -> int:
        return sum(relay.asked for relay in self.relays.values())

    @property
    def head(self) -> str:
        topology = self.conductor.state.topology
        return topology.head if topology is not None else ""

    def start(self, name: str) -> None:
        relay = self.relays[name]
        relay.alive, relay.route, relay.verified = True, None, 0
        relay.received = relay.fetched = 0
        relay.told_complete, relay.back_at = False, -1
        relay.looking = LOOKING_STEPS if relay.part else 0
        relay.port = 1000 + self.step
        self.tell(name, messages.Listening(node=name, address="x", port=relay.port, pid=1))

    def kill(self, name: str, back_after_steps: int) -> None:
        """Its agent tells of it in the next step, and starts it again then or later; 0 is never."""
        relay = self.relays[name]
        relay.alive = False
        self.untold += relay.part - relay.told
        relay.back_at = self.step + back_after_steps if back_after_steps else -1
        self.tell(name, messages.Ended())

    def tell(self, name: str, event: messages.Event) -> None:
        """Where the head changes, what only dead hosts have is lost, and what only slow ones have."""
        before = self.head
        self.carry_out(self.conductor.observe(name, event, self.step * STEP_SECONDS))
        if before and self.head and before != self.head:
            slow = {host for host, fault in self.conductor.state.faults.items() if fault is Fault.SLOW}
            parts = {host: relay.part for host, relay in self.relays.items()}
            good = [part for host, part in parts.items() if self.relays[host].alive and host not in slow]
            self.died_with_their_holder += max(parts.values()) - max(good, default=0)

    def carry_out(self, instructions: Sequence[Instruction]) -> None:
        for name, order in instructions:
            assert isinstance(order, Route)
            self.underway.append((self.step + self.relays[name].delay_steps, name, order))

    def restart_controller(self) -> None:
        self.conductor = Conductor(ConductorState.model_validate_json(self.conductor.state.model_dump_json()))
        self.carry_out(self.conductor.again())
        for name, relay in self.relays.items():
            if not relay.alive:
                self.tell(name, messages.Ended())  # its agent tells it again

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            self._deliver()
            for name, relay in self.relays.items():
                if relay.back_at == self.step:
                    self.start(name)
                if relay.alive and relay.route is not None:
                    self._move(name, relay)
            for name, relay in self.relays.items():
                if relay.alive and self.step % TOLD_EVERY_STEPS == relay.phase:
                    self._tell_progress(name, relay)

    def _deliver(self) -> None:
        due = [order for order in self.underway if order[0] <= self.step]
        self.underway = [order for order in self.underway if order[0] > self.step]
        for _, name, route in due:
            relay = self.relays[name]
            if relay.alive and (relay.route is None or route.sequence > relay.route.sequence):
                relay.route, relay.lost_since = route, -1

    def _move(self, name: str, relay: SimulatedRelay) -> None:
        assert relay.route is not None
        if relay.looking:
            relay.looking -= 1
        elif relay.route.head is None:
            self._fetch(name, relay)
        else:
            announced = self._announced(relay.route.head)
            relay.verified = max(relay.verified, min(relay.part, announced))  # of what lies on its disk
            if relay.verified < TOTAL:
                self._receive(name, relay, announced)
        if relay.verified == TOTAL and not relay.told_complete:
            relay.told_complete = True
            self.tell(name, messages.Complete(snapshot="/s", fetched_bytes=1))

    def _fetch(self, name: str, relay: SimulatedRelay) -> None:
        relay.verified = relay.part
        if relay.verified < TOTAL and not relay.has_source:
            if self.step % TOLD_EVERY_STEPS == relay.phase:
                self.tell(name, messages.SourceFailed(code="not-found", message="no source"))
            return
        got = min(round(min(HUB_RATE, relay.rate) * STEP_SECONDS), TOTAL - relay.verified)
        relay.asked += got
        relay.fetched += got
        relay.verified += got
        relay.part = relay.verified

    def _announced(self, head: messages.Peer) -> int:
        leader = self.relays[head.name]
        return leader.verified if leader.is_head and leader.port == head.port else 0

    def _receive(self, name: str, relay: SimulatedRelay, announced: int) -> None:
        assert relay.route is not None and relay.route.upstream is not None and relay.route.head is not None
        lost = [
            (peer, purpose)
            for peer, purpose in ((relay.route.upstream, "pieces"), (relay.route.head, "hashes"))
            if not (self.relays[peer.name].alive and self.relays[peer.name].port == peer.port)
        ]
        if not lost:
            relay.lost_since = -1
            server = self.relays[relay.route.upstream.name]
            got = max(0, min(round(relay.rate * STEP_SECONDS), server.verified - relay.verified))
            got = min(got, max(0, announced - relay.verified))
            relay.received += got
            relay.verified += got
            relay.part = max(relay.part, relay.verified)
            return
        relay.lost_since = self.step if relay.lost_since < 0 else relay.lost_since
        if (self.step - relay.lost_since) % REDIAL_STEPS == 0:
            reason = "closed" if self.step == relay.lost_since else "refused"
            for peer, purpose in lost:
                self.tell(name, messages.PeerLost(peer=peer.name, purpose=purpose, reason=reason))

    def _tell_progress(self, name: str, relay: SimulatedRelay) -> None:
        upstream = relay.route.upstream.name if relay.route and relay.route.upstream else ""
        relay.told = max(relay.told, relay.verified)
        self.tell(
            name,
            messages.Progress(
                verified_bytes=relay.verified,
                total_bytes=TOTAL,
                received_bytes=relay.received,
                source_bytes=relay.fetched,
                upstream=upstream if relay.lost_since < 0 else "",
            ),
        )


incidents = st.lists(
    st.tuples(
        st.sampled_from(["kill", "kill", "kill head", "kill head", "source", "complaint", "restart"]),
        st.sampled_from(NAMES),
        st.integers(1, 40),  # steps until it happens
        st.sampled_from([0, 8, 15, 30, 80]),  # and until the process is back
    ),
    max_size=8,
)
LINKS = (HUB_RATE / 3, HUB_RATE / 1.3, HUB_RATE * 2, HUB_RATE * 10)


def test_a_killed_head_that_comes_back_costs_nothing() -> None:
    """It had far more than the others, whose links are slower than the hub's."""
    lab = SimulatedLab((HUB_RATE * 10, HUB_RATE / 3, HUB_RATE / 3, HUB_RATE / 3), (1, 1, 1, 1))
    lab.run(30)
    lab.kill("a", 8)
    lab.run(400)
    assert all(relay.verified == TOTAL for relay in lab.relays.values())
    assert lab.asked_of_the_hub == TOTAL


@settings(max_examples=150, deadline=None)
@given(
    incidents,
    st.tuples(*[st.sampled_from(LINKS)] * len(NAMES)),
    st.tuples(*[st.integers(1, 4)] * len(NAMES)),
    st.sampled_from(NAMES),
)
def test_no_byte_is_asked_for_twice_that_a_living_host_holds(
    story: list[tuple[str, str, int, int]], rates: tuple[float, ...], delays: tuple[int, ...], complainer: str
) -> None:
    lab = SimulatedLab(rates, delays)
    lab.run(TOLD_EVERY_STEPS)  # what a host has that never said a word nobody can know
    for what, name, after, back in story:
        lab.run(after)
        if what == "kill head":
            name = lab.head
        others = [relay for other, relay in lab.relays.items() if other != name and relay.alive]
        if what.startswith("kill") and lab.relays[name].alive and any(relay.has_source for relay in others):
            lab.kill(name, back)
        elif what == "source" and sum(relay.has_source for relay in lab.relays.values()) > 1:
            lab.relays[name].has_source = False
        elif what == "restart":
            lab.restart_controller()
        elif what == "complaint" and lab.relays[complainer].alive and lab.head:
            for _ in range(2):  # its own cable, more likely than the head's
                lab.tell(complainer, messages.PeerLost(peer=lab.head, purpose="pieces", reason="closed"))
                lab.run(5)
    lab.run(100)
    for name, relay in lab.relays.items():
        if not relay.alive and relay.back_at < 0:
            lab.start(name)
    for _ in range(40):
        lab.run(50)
        if all(relay.verified == TOTAL for relay in lab.relays.values()):
            break
    assert [relay.verified for relay in lab.relays.values()] == [TOTAL] * len(NAMES)
    assert lab.asked_of_the_hub <= TOTAL * SLACK + lab.died_with_their_holder + lab.untold
