"""Properties of the order of a chain and of its repair, for any fleet and any sequence of failures."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_controller.distributing.model import Member, Topology
from fleet_controller.distributing.ordering import LEAVES_PER_HOST, order_members, representatives
from fleet_controller.distributing.repair import changed_upstreams, moved_to_the_end, successor, with_new, without

NAMES = [f"host{number:02d}" for number in range(40)]
members_of = st.lists(
    st.builds(
        Member,
        name=st.sampled_from(NAMES),
        subnet=st.sampled_from(["", "a", "b", "c"]),
        link_bytes_per_second=st.sampled_from([None, 12.5e6, 125e6, 312e6, 1.25e9]),
        wifi=st.booleans(),
        dialable=st.booleans(),
        slow=st.booleans(),
        cache=st.sampled_from(["", "", "", "nfs1", "nfs2"]),
    ),
    min_size=1,
    max_size=20,
    unique_by=lambda member: member.name,
)


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[Member], str]:
    members = draw(members_of)
    return members, draw(st.sampled_from([member.name for member in members]))


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    members, head = draw(fleets())
    return order_members(members, head)


def assert_tree(topology: Topology, names: Sequence[str]) -> None:
    """Everyone is in it once, has an upstream or is the head, and the way up ends at the head."""
    assert sorted(topology.names) == sorted(names)
    for name in names:
        assert (topology.upstream(name) is None) == (name == topology.head)
        seen, at = {name}, name
        while (upstream := topology.upstream(at)) is not None:
            assert upstream not in seen
            seen.add(upstream)
            at = upstream
        assert at == topology.head
    for leaf in topology.leaves:
        assert topology.downstream(leaf) == ()


@given(fleets())
def test_the_first_topology_is_a_tree_with_the_tail_as_leaves(fleet: tuple[list[Member], str]) -> None:
    members, head = fleet
    topology = order_members(members, head)
    assert_tree(topology, [member.name for member in members])
    assert topology.head == head
    for member in members:
        if member.name != head:
            assert (member.name in topology.leaves) == member.belongs_on_the_tail
    # Nobody behind waits for a slower link in front of him, as far as links are known.
    speeds = {member.name: member.link_bytes_per_second or 125e6 for member in members}
    chain = [speeds[name] for name in topology.chain]
    assert all(later <= earlier * 2 for earlier, later in itertools.pairwise(chain))


@given(fleets())
def test_equal_hosts_of_a_subnet_stay_together(fleet: tuple[list[Member], str]) -> None:
    members, head = fleet
    alike = [member.model_copy(update={"link_bytes_per_second": 125e6}) for member in members]
    topology = order_members(alike, head)
    subnets = {member.name: member.subnet for member in alike}
    run = [subnets[name] for name in topology.trunk]
    changes = [subnet for before, subnet in itertools.pairwise(run) if subnet != before]
    assert len(changes) == len(set(changes)) and subnets[head] not in changes


@given(fleets())
def test_the_order_does_not_depend_on_how_hosts_were_named_first(fleet: tuple[list[Member], str]) -> None:
    members, head = fleet
    assert order_members(members, head) == order_members(list(reversed(members)), head)


@given(fleets())
def test_one_host_fetches_for_a_shared_cache(fleet: tuple[list[Member], str]) -> None:
    members, head = fleet
    chosen = representatives(members, head)
    caches = {member.name: member.cache or member.name for member in members}
    assert set(chosen) == set(caches) and chosen[head] == head
    for name, representative in chosen.items():
        assert caches[name] == caches[representative] and chosen[representative] == representative
    assert len(set(chosen.values())) == len(set(caches.values()))


@given(st.integers(0, 60), st.integers(1, 6))
def test_leaves_are_spread_over_the_end_of_the_chain(leaves: int, trunk: int) -> None:
    members = [Member(name=f"t{number}") for number in range(trunk)]
    members += [Member(name=f"w{number:02d}", wifi=True) for number in range(leaves)]
    topology = order_members(members, "t0")
    counts = [sum(upstream == name for upstream in topology.leaves.values()) for name in topology.trunk]
    assert sum(counts) == leaves
    if leaves <= LEAVES_PER_HOST:
        assert counts[-1] == leaves
    assert max(counts) <= max(LEAVES_PER_HOST, -(-leaves // trunk))


@st.composite
def failures(draw: st.DrawFn) -> tuple[Topology, list[tuple[str, str]], dict[str, int]]:
    """A topology, what happens to whom one after the other, and how many bytes each host has."""
    topology = draw(topologies())
    name = st.sampled_from(topology.names)
    events = draw(st.lists(st.tuples(st.sampled_from(["gone", "demoted", "unfit", "back", "end"]), name), max_size=30))
    verified = {host: draw(st.integers(0, 10)) * 1_000_000 for host in topology.names}
    return topology, events, verified


@given(failures())
def test_any_sequence_of_failures_leaves_a_tree(
    story: tuple[Topology, list[tuple[str, str]], dict[str, int]],
) -> None:
    topology, events, verified = story
    everyone, gone, demoted, unfit = set(topology.names), set[str](), set[str](), set[str]()
    for what, name in events:
        if what == "gone":
            gone.add(name)
        elif what == "demoted":
            demoted.add(name)
        elif what == "unfit":
            unfit.add(name)
        elif what == "back":
            gone.discard(name)
            demoted.add(name)
            topology = with_new(topology, name)
        elif name in topology.chain:
            topology = moved_to_the_end(topology, name)
        after = without(topology, gone, demoted, verified.__getitem__, unfit)
        if after is None:
            assert everyone == gone
            return
        assert_tree(after, sorted(everyone - gone))
        # Who was demoted serves nobody, unless everybody was.
        assert not set(after.chain) & demoted
        if everyone - gone - demoted - unfit:
            assert after.head not in demoted | unfit
        elif everyone - gone - unfit:
            assert after.head not in unfit
        # Repeating it changes nothing: a repair ends.
        assert without(after, gone, demoted, verified.__getitem__, unfit) == after
        topology = after


@given(topologies(), st.data())
def test_only_who_lost_his_upstream_gets_another(topology: Topology, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(topology.names))
    kind = data.draw(st.sampled_from(["gone", "demoted"]))
    gone, demoted = ({name}, set[str]()) if kind == "gone" else (set[str](), {name})
    after = without(topology, gone, demoted, lambda host: 0)
    if after is None or name == topology.head:
        return
    changed = set(changed_upstreams(topology, after))
    assert changed <= {*topology.downstream(name), name}
    if name in topology.leaves:
        assert not changed


@given(topologies(), st.data())
def test_the_next_head_has_most_of_the_bytes(topology: Topology, data: st.DataObject) -> None:
    verified = {name: data.draw(st.integers(0, 5)) for name in topology.names}
    others = [name for name in topology.names if name != topology.head]
    returned = set(data.draw(st.lists(st.sampled_from(others), unique=True))) if others else set()
    after = without(topology, {topology.head}, returned, verified.__getitem__, barred=())
    if after is None:
        assert not others
        return
    assert verified[after.head] == max(verified[name] for name in others)
    # Of those who have as much as it, it stood nearest to the old one.
    assert after.head == next(name for name in others if verified[name] == verified[after.head])
    assert successor(topology, {topology.head}, (), verified.__getitem__, ()) == after.head
    assert topology.head not in changed_upstreams(topology, after)


@given(topologies(), st.data())
def test_a_head_that_is_replaced_is_told_first(topology: Topology, data: st.DataObject) -> None:
    """It goes on fetching until then."""
    after = without(topology, (), {topology.head}, lambda name: 0)
    assert after is not None
    if after.head != topology.head:
        assert changed_upstreams(topology, after)[0] == topology.head


def test_a_host_in_the_middle_closes_up() -> None:
    topology = Topology(head="a", chain=("b", "c", "d"), leaves={"w": "d"})
    after = without(topology, {"c"}, set(), lambda name: 0)
    assert after == Topology(head="a", chain=("b", "d"), leaves={"w": "d"})
    assert changed_upstreams(topology, after) == ("d",)
    slow = without(topology, set(), {"b"}, lambda name: 0)
    assert slow == Topology(head="a", chain=("c", "d"), leaves={"w": "d", "b": "d"})
    assert set(changed_upstreams(topology, slow)) == {"b", "c"}


def test_a_topology_knows_only_its_own() -> None:
    with pytest.raises(KeyError):
        Topology(head="a").upstream("b")
    assert Topology(head="a", chain=("b",), leaves={"c": "b"}).depth("c") == 2
