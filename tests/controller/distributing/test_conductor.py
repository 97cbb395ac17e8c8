"""From what relays tell to what they are told: each failure by itself, on a simulated fleet, and any mix of them."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_controller.distributing import messages
from fleet_controller.distributing.conductor import Conductor, ConductorState, Instruction
from fleet_controller.distributing.messages import FolderSource, HubSource, Route, order_line, parse_event
from fleet_controller.distributing.model import Fault, Member

TOTAL = 1_000_000_000
RATE = 10_000_000.0
NAMES = ("a", "b", "c", "d", "e")


class Fleet:
    """Relays that move bytes as the topology says, at the rates given, and tell it twice a second."""

    def __init__(
        self, names: Sequence[str] = NAMES, total: int = TOTAL, links: float | None = RATE, head_has: int | None = None
    ) -> None:
        members = tuple(Member(name=name, link_bytes_per_second=links) for name in names)
        state = ConductorState(
            members=members, head=names[0], sources={names[0]: FolderSource(path="/models")}, fallback=HubSource()
        )
        self.conductor = Conductor(state)
        self.now = 100.0
        self.total = total
        self.arrived = dict.fromkeys(names, 0)
        self.arrived[names[0]] = total if head_has is None else head_has
        self.down = dict.fromkeys(names, RATE)
        self.up = dict.fromkeys(names, RATE)
        self.starved = dict.fromkeys(names, 0.0)
        self.upstream: dict[str, str] = {}
        self.routes: dict[str, Route] = {}
        self.dead: set[str] = set()
        for number, name in enumerate(names):
            self.tell(name, messages.Listening(node=name, address="10.0.0.1", port=1000 + number, pid=1))
        self.carry_out(self.conductor.begin())

    @property
    def state(self) -> ConductorState:
        return self.conductor.state

    def tell(self, name: str, event: messages.Event) -> None:
        self.carry_out(self.conductor.observe(name, event, self.now))

    def carry_out(self, instructions: Sequence[Instruction]) -> None:
        for name, order in instructions:
            assert isinstance(order, Route)
            if name in self.dead:
                continue
            before = self.routes.get(name)
            assert before is None or order.sequence >= before.sequence
            self.routes[name] = order
            self.upstream[name] = order.upstream.name if order.upstream else ""

    def run(self, seconds: float) -> None:
        """In steps of half a second; a host gets what its link and its share of its server's take."""
        for _ in range(round(seconds * 2)):
            self.now += 0.5
            before = dict(self.arrived)
            for name, server in self.upstream.items():
                if name in self.dead or not server or server in self.dead:
                    continue
                sharing = [
                    other for other, its in self.upstream.items() if its == server and before[other] < self.total
                ]
                rate = min(self.down[name], self.up[server] / max(1, len(sharing)))
                self.arrived[name] = min(before[name] + round(rate / 2), before[server])
            for name in list(self.upstream):
                if name not in self.dead:
                    self.tell(name, self.progress(name))
            if all(self.arrived[name] == self.total for name in self.upstream if name not in self.dead):
                return

    def progress(self, name: str) -> messages.Progress:
        return messages.Progress(
            verified_bytes=self.arrived[name],
            total_bytes=self.total,
            received_bytes=self.arrived[name] if self.upstream[name] else 0,
            upstream=self.upstream[name],
            starved_seconds=self.starved[name],
        )

    def done(self) -> bool:
        return all(self.arrived[name] == self.total for name in self.upstream if name not in self.dead)


def test_the_first_routes_name_head_upstream_and_source() -> None:
    fleet = Fleet()
    assert fleet.upstream == {"a": "", "b": "a", "c": "b", "d": "c", "e": "d"}
    assert fleet.routes["a"] == Route(sequence=1, folder=FolderSource(path="/models"))
    route = fleet.routes["c"]
    assert route.head is not None and (route.head.name, route.head.port) == ("a", 1000)
    assert route.upstream is not None and route.upstream.port == 1001


def test_a_well_fleet_is_left_in_peace() -> None:
    fleet = Fleet()
    fleet.run(300)
    assert fleet.done() and len(fleet.state.reasons) == 1 and not fleet.state.faults


def test_a_dead_receiver_is_stepped_over_and_comes_back_as_a_leaf() -> None:
    fleet = Fleet()
    fleet.run(5)
    fleet.dead.add("c")
    fleet.tell("c", messages.Ended())
    assert fleet.upstream["d"] == "b" and "c" not in fleet.state.topology.names  # type: ignore[union-attr]
    fleet.dead.remove("c")
    fleet.tell("c", messages.Listening(node="c", address="10.0.0.1", port=2000, pid=2))
    assert fleet.upstream["c"] == "e" and fleet.state.faults == {"c": Fault.RETURNED}
    fleet.run(300)
    assert fleet.done()


def test_a_relay_that_restarts_unnoticed_gets_its_place_again() -> None:
    fleet = Fleet()
    fleet.tell("c", messages.Listening(node="c", address="10.0.0.1", port=2000, pid=2))
    route = fleet.routes["d"]
    assert route.upstream is not None and route.upstream.port == 2000
    assert fleet.routes["c"].sequence == route.sequence == 2 and fleet.routes["b"].sequence == 1


def test_a_dead_head_is_followed_by_who_has_most() -> None:
    fleet = Fleet(head_has=50_000_000)
    fleet.run(10)
    fleet.dead.add("a")
    fleet.tell("b", messages.PeerLost(peer="a", purpose="pieces", reason="closed"))
    assert fleet.upstream["b"] == "a"
    fleet.tell("a", messages.Ended())
    assert fleet.routes["b"].head is None and fleet.routes["b"].hub == HubSource()
    assert {name: fleet.upstream[name] for name in "cde"} == {"c": "b", "d": "c", "e": "d"}
    heads = {fleet.routes[name].head.name for name in "cde"}  # type: ignore[union-attr]
    assert heads == {"b"}


def test_a_dead_head_that_alone_has_much_is_given_time_to_come_back() -> None:
    """Its agent starts it again, and its part is on the disk: the hub need not send that once more."""
    fleet = Fleet(head_has=500_000_000)
    fleet.run(10)
    fleet.dead.add("a")
    fleet.tell("a", messages.Ended())
    lost = messages.PeerLost(peer="a", purpose="pieces", reason="refused")
    for _ in range(4):
        fleet.run(0.5)
        fleet.tell("b", lost)
        assert fleet.state.topology is not None and fleet.state.topology.head == "a" and not fleet.state.faults
    fleet.dead.remove("a")
    fleet.tell("a", messages.Listening(node="a", address="10.0.0.1", port=2000, pid=2))
    assert fleet.routes["a"].folder and fleet.routes["b"].upstream.port == 2000  # type: ignore[union-attr]
    fleet.tell("b", lost)  # of the port that was
    fleet.tell("b", lost)
    assert not fleet.state.faults
    fleet.dead.add("a")
    fleet.tell("a", messages.Ended())
    fleet.run(7)
    assert fleet.state.topology is not None and fleet.state.topology.head == "b"  # it does not come back


def test_a_dead_head_that_is_found_to_be_wrong_is_not_waited_for() -> None:
    fleet = Fleet(head_has=500_000_000)
    fleet.run(10)
    fleet.dead.add("a")
    fleet.tell("a", messages.Ended())
    fleet.tell("b", messages.CorruptPiece(peer="a", path="m", piece=3))
    assert fleet.state.topology is not None and "a" not in fleet.state.topology.names
    assert fleet.state.topology.head == "b" and fleet.state.faults == {"a": Fault.CORRUPT}


def test_a_head_without_a_source_serves_until_another_one_has_what_it_has() -> None:
    fleet = Fleet(head_has=200_000_000)
    fleet.run(10)
    fleet.tell("a", messages.SourceFailed(code="not-found", message="no source on a"))
    fleet.run(5)
    assert fleet.state.topology is not None and fleet.state.topology.head == "a"
    fleet.run(6)
    assert fleet.state.topology.head == "b" and fleet.arrived["b"] == 200_000_000
    assert fleet.upstream["c"] == "b"


def test_nobody_waits_for_a_head_without_a_source_that_serves_nothing_either() -> None:
    fleet = Fleet(head_has=200_000_000)
    fleet.run(10)
    fleet.up["a"] = 0.0
    fleet.tell("a", messages.SourceFailed(code="not-found", message="no source on a"))
    fleet.run(4)
    assert fleet.state.topology is not None and fleet.state.topology.head == "b"


def test_one_host_that_complains_of_the_head_tries_another_place_two_are_believed() -> None:
    """What the head has and nobody else would have to be asked of the hub once more."""
    fleet = Fleet(head_has=500_000_000)
    fleet.run(10)
    lost = messages.PeerLost(peer="a", purpose="pieces", reason="closed")
    fleet.tell("b", lost)
    fleet.run(0.5)
    fleet.tell("b", lost)
    assert fleet.state.topology is not None and not fleet.state.faults
    assert fleet.state.topology.trunk == ("a", "c", "d", "e", "b")
    for _ in range(2):
        fleet.run(0.5)
        fleet.tell("c", lost.model_copy(update={"reason": "protocol"}))
    assert fleet.state.faults == {"a": Fault.UNREACHABLE}


def test_a_head_that_nobody_reaches_any_more_may_be_starting_again() -> None:
    """Its runner was killed along with its relay, say, so that nobody told of it."""
    fleet = Fleet(head_has=500_000_000)
    fleet.run(10)
    fleet.dead.add("a")
    for _ in range(2):
        fleet.run(0.5)
        for name in "bc":
            fleet.tell(name, messages.PeerLost(peer="a", purpose="hashes", reason="refused"))
    assert not fleet.state.faults
    fleet.run(7)
    assert fleet.state.faults == {"a": Fault.UNREACHABLE}


def test_who_alone_does_not_cease_to_complain_of_the_head_is_believed_in_the_end() -> None:
    fleet = Fleet(head_has=500_000_000)
    for _ in range(12):
        fleet.run(1.0)
        fleet.tell("e", messages.PeerLost(peer="a", purpose="hashes", reason="unreachable"))
    assert fleet.state.faults == {"a": Fault.UNREACHABLE}


def test_a_controller_that_came_back_takes_nobody_for_lost_whom_it_has_not_heard_yet() -> None:
    fleet = Fleet()
    fleet.run(5)
    fleet.conductor = Conductor(ConductorState.model_validate_json(fleet.state.model_dump_json()))
    fleet.tell("d", messages.PeerLost(peer="c", purpose="pieces", reason="unreachable"))
    assert not fleet.state.faults


def test_a_cut_host_is_believed_lost_when_it_is_not_heard_either() -> None:
    fleet = Fleet()
    fleet.run(5)
    fleet.dead.add("c")
    fleet.run(2)
    fleet.tell("d", messages.PeerLost(peer="c", purpose="pieces", reason="silent"))
    assert fleet.upstream["d"] == "b" and fleet.state.faults == {"c": Fault.UNREACHABLE}


def test_one_complaint_about_a_host_that_flows_is_not_believed_two_are() -> None:
    fleet = Fleet()
    fleet.run(5)
    lost = messages.PeerLost(peer="c", purpose="pieces", reason="closed")
    fleet.tell("d", lost)
    assert not fleet.state.faults
    fleet.run(0.5)
    fleet.tell("d", lost)
    assert fleet.state.faults == {"c": Fault.UNREACHABLE} and fleet.upstream["d"] == "b"


def test_stale_complaints_change_nothing() -> None:
    fleet = Fleet()
    for _ in range(5):
        fleet.tell("d", messages.PeerLost(peer="a", purpose="pieces", reason="silent"))
        fleet.tell("x", messages.PeerLost(peer="a", purpose="pieces", reason="silent"))
    assert len(fleet.state.reasons) == 1


def test_who_serves_wrong_pieces_serves_nobody_any_more() -> None:
    fleet = Fleet()
    fleet.tell("c", messages.CorruptPiece(peer="b", path="m", piece=3))
    assert fleet.upstream["c"] == "a" and fleet.upstream["b"] == "e"
    assert fleet.state.faults == {"b": Fault.CORRUPT}


def test_who_finds_everybody_wrong_is_wrong_itself() -> None:
    fleet = Fleet()
    fleet.tell("c", messages.CorruptPiece(peer="b", path="m", piece=3))
    fleet.tell("c", messages.CorruptPiece(peer="a", path="m", piece=3))
    assert fleet.state.faults == {"c": Fault.CORRUPT}
    assert "c" in fleet.state.topology.leaves  # type: ignore[union-attr]


def test_a_head_without_a_source_hands_over_and_the_last_one_is_said_to_be_stuck() -> None:
    fleet = Fleet()
    fleet.arrived["a"] = 0
    fleet.run(0.5)
    for name in NAMES:
        assert fleet.state.stuck == ""
        fleet.tell(fleet.state.topology.head, messages.SourceFailed(code="not-found", message=f"no source on {name}"))  # type: ignore[union-attr]
    assert fleet.state.stuck == "no source on e"


def test_a_slow_host_in_the_middle_is_found_and_the_others_go_on() -> None:
    fleet = Fleet()
    fleet.run(4)
    fleet.down["c"] = RATE / 10
    fleet.run(4.5)
    assert fleet.upstream["d"] == "b"
    fleet.run(4)
    assert fleet.state.faults == {"c": Fault.SLOW} and "c" in fleet.state.topology.leaves  # type: ignore[union-attr]


@pytest.mark.parametrize("links", [RATE, None])
def test_a_slow_first_host_is_found_although_nobody_can_be_compared_with_it(links: float | None) -> None:
    fleet = Fleet(links=links)
    fleet.down["b"] = RATE / 10
    fleet.run(8)
    assert fleet.state.faults == {"b": Fault.SLOW} and fleet.upstream["c"] == "a"


def test_a_slow_server_is_told_from_a_slow_receiver() -> None:
    fleet = Fleet()
    fleet.run(4)
    fleet.up["c"] = RATE / 10
    fleet.run(14)
    assert fleet.state.faults == {"c": Fault.SLOW}
    assert "d" in fleet.state.topology.chain  # type: ignore[union-attr]


def test_who_serves_two_slow_hosts_is_not_blamed_for_them() -> None:
    fleet = Fleet(names=tuple("abcdefgh"), links=None)
    fleet.down["d"] = fleet.down["e"] = RATE / 10
    fleet.run(60)
    assert set(fleet.state.faults) <= {"d", "e"}  # one behind the other they hold up nobody
    assert all(fleet.arrived[name] > 30 * RATE for name in "bcfgh")


def test_two_slow_hosts_at_the_end_take_nobody_along() -> None:
    fleet = Fleet(links=None)
    fleet.down["d"] = fleet.down["e"] = RATE / 10
    fleet.run(120)
    assert set(fleet.state.faults) <= {"d", "e"}
    assert all(fleet.arrived[name] > 80 * RATE for name in "bc")


def test_a_head_with_a_slow_link_demotes_nobody() -> None:
    fleet = Fleet()
    fleet.up["a"] = RATE / 5
    fleet.run(40)
    assert not fleet.state.faults
    assert len(fleet.state.reasons) <= 2  # one trial, and no other


def test_few_pieces_do_not_blind_it() -> None:
    """Pieces so large that a slow host finishes none in seconds: what has arrived of them counts."""
    fleet = Fleet()
    fleet.run(4)
    fleet.down["c"] = RATE / 10
    for _ in range(12):
        fleet.run(0.5)
        fleet.tell("c", fleet.progress("c").model_copy(update={"verified_bytes": 40_000_000}))
    assert fleet.state.faults == {"c": Fault.SLOW}


def test_a_loaded_machine_is_not_called_slow_for_a_hiccup() -> None:
    fleet = Fleet()
    fleet.run(4)
    fleet.down["c"], fleet.starved["c"] = RATE / 10, 1.0
    fleet.run(6)
    fleet.down["c"], fleet.starved["c"] = RATE * 2, 0.0
    fleet.run(300)
    assert fleet.done() and not fleet.state.faults and len(fleet.state.reasons) == 1


def test_a_suspect_that_does_well_at_its_new_place_is_not_demoted() -> None:
    fleet = Fleet()
    fleet.run(4)
    fleet.down["c"] = RATE / 10
    fleet.run(3)
    assert fleet.upstream["d"] == "b" and fleet.state.trial is not None
    fleet.down["c"] = RATE
    fleet.run(20)
    assert not fleet.state.faults and fleet.state.topology is not None
    assert fleet.state.topology.chain == ("b", "d", "e", "c")


def test_a_suspect_that_gets_all_that_its_new_server_has_is_not_demoted() -> None:
    """On a machine so loaded that nobody is fast; what it got before was not much less than what the others get now."""
    fleet = Fleet()
    fleet.run(4)
    fleet.down.update(b=RATE / 8, c=RATE * 0.26, d=RATE * 0.26, e=RATE * 0.2)
    fleet.run(3)
    assert fleet.state.trial is not None and fleet.upstream["b"] == "e"
    fleet.down["b"] = RATE / 2
    fleet.run(40)
    assert fleet.state.trial is None and not fleet.state.faults


def test_a_head_that_is_not_yet_one_is_not_blamed_at_once() -> None:
    fleet = Fleet()
    fleet.now += 5.0
    for name in "bcde":
        fleet.tell(name, messages.PeerLost(peer="a", purpose="hashes", reason="refused"))
    assert not fleet.state.faults


def test_who_waits_for_a_slow_one_is_not_blamed() -> None:
    fleet = Fleet(names=tuple("abcdefgh"))
    fleet.run(4)
    fleet.down["c"] = RATE / 10
    fleet.run(30)
    assert fleet.state.faults == {"c": Fault.SLOW}


def test_the_state_outlives_the_controller() -> None:
    fleet = Fleet()
    fleet.run(5)
    fleet.tell("c", messages.CorruptPiece(peer="b", path="m", piece=3))
    stored = fleet.state.model_dump_json()
    fleet.conductor = Conductor(ConductorState.model_validate_json(stored))
    assert fleet.state.model_dump_json() == stored
    fleet.carry_out(fleet.conductor.again())
    fleet.dead.add("c")
    fleet.tell("c", messages.Ended())
    fleet.run(400)
    assert fleet.done()


def test_complete_hosts_finish_the_rollout_and_damage_reopens_it() -> None:
    fleet = Fleet()
    for name in NAMES:
        assert not fleet.state.finished
        fleet.tell(name, messages.Complete(snapshot="/s", fetched_bytes=1))
    assert fleet.state.finished
    fleet.tell("b", messages.DamagedPart(path="m", piece=1))
    assert not fleet.state.finished


incidents = st.lists(
    st.tuples(
        st.sampled_from(["dies", "returns", "corrupt", "slow", "lost", "source", "mismatch", "restart", "well"]),
        st.sampled_from(NAMES),
        st.sampled_from(NAMES),
    ),
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(incidents)
def test_whatever_happens_everyone_who_lives_gets_it_all(story: list[tuple[str, str, str]]) -> None:
    """As long as one host has the whole file or a source: here the hub, which any head reaches."""
    fleet = Fleet(total=100_000_000)
    for what, name, other in story:
        fleet.run(1.0)
        topology = fleet.state.topology
        if what == "dies" and len(fleet.dead) < len(NAMES) - 1 and name not in fleet.dead:
            fleet.dead.add(name)
            fleet.tell(name, messages.Ended())
        elif what == "returns" and name in fleet.dead:
            fleet.dead.remove(name)
            fleet.tell(name, messages.Listening(node=name, address="10.0.0.1", port=3000, pid=3))
        elif name in fleet.dead or topology is None:
            continue
        elif what == "corrupt":
            fleet.tell(name, messages.CorruptPiece(peer=other, path="m", piece=0))
        elif what == "slow":
            fleet.down[name] = RATE / 10
        elif what == "lost":
            fleet.tell(name, messages.PeerLost(peer=other, purpose="pieces", reason="silent"))
        elif what == "mismatch":
            fleet.tell(name, messages.HashMismatch(head=other, path="m"))
        elif what == "restart":
            fleet.conductor = Conductor(ConductorState.model_validate_json(fleet.state.model_dump_json()))
            fleet.carry_out(fleet.conductor.again())
            for dead in sorted(fleet.dead):
                fleet.tell(dead, messages.Ended())  # its agent tells it again
    for _ in range(400):
        topology = fleet.state.topology
        assert topology is not None
        fleet.arrived[topology.head] = fleet.total  # it has a source, and fetches what it lacks
        fleet.run(5.0)
        if fleet.done():
            break
    assert fleet.done() and topology is not None
    assert set(topology.names) == set(NAMES) - fleet.dead
    demoted = set(fleet.state.faults)
    assert not demoted & set(topology.chain)


def test_lines_are_those_of_the_agent() -> None:
    """The two sides are written twice, since neither may import the other: here they meet."""
    from fleet_agent.relay import control

    route = Route(sequence=3, head=messages.Peer(name="a", address="x", port=1), hub=None, folder=None)
    parsed = control.parse_order(order_line(route))
    assert parsed == control.Route(3, head=control.Peer("a", "x", 1))
    source = control.parse_order(order_line(Route(sequence=1, hub=HubSource(endpoint="https://hub"))))
    assert source == control.Route(1, hub=control.HubSource("https://hub"))
    assert control.parse_order(order_line(messages.Allow(names=("a", "b")))) == control.Allow(("a", "b"))
    assert control.parse_order(order_line(messages.Limits(upload_bytes_per_second=5))) == control.Limits(5)
    assert control.parse_order(order_line(messages.Stop())) == control.Stop()
    events: list[control.Event] = [
        control.Listening("a", "::", 1, 2), control.Progress(1, 2, 0, 1, 1, 0, 0, 1.5, 1, True, "", ("x",), 0.0, 0.0),
        control.FilePlaced("p", True), control.Complete("/s", 1), control.PeerLost("a", "pieces", "closed", "x"),
        control.CorruptPiece("a", "p", 1), control.DamagedPart("p", 1), control.HashMismatch("a", "p"),
        control.SourceFailed("c", "m", "r"), control.PeerRefused("1.2.3.4", "n", "r"), control.Note("n"),
        control.Failed("c", "m", "r"),
    ]  # fmt: skip
    assert {type(event) for event in events} == set(control.EVENTS.values())
    for event in events:
        line = control.event_line(event)
        assert json.loads(parse_event(line).model_dump_json()) == json.loads(line)
        assert control.parse_event(line) == event
