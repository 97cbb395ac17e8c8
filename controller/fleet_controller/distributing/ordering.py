"""The first topology of a rollout."""

import math
from collections.abc import Mapping, Sequence

from fleet_controller.distributing.model import Member, Topology

# A host's uplink is shared by what hangs on it; beyond that the next host towards the head takes some.
LEAVES_PER_HOST = 8


def representatives(members: Sequence[Member], head: str = "") -> dict[str, str]:
    """host -> the host that fetches into its cache: itself, or of those that share a cache the one that does it best.

    The head, where it is given, fetches for whoever shares its cache.
    """
    groups: dict[str, list[Member]] = {}
    for member in members:
        groups.setdefault(member.cache or f"\0{member.name}", []).append(member)
    chosen: dict[str, str] = {}
    for group in groups.values():
        best = min(group, key=lambda member: (member.name != head, member.belongs_on_the_tail, *_preference(member)))
        chosen.update({member.name: best.name for member in group})
    return chosen


def order_members(members: Sequence[Member], head: str) -> Topology:
    """A chain behind `head`, the fastest first, so that each host gets all that its own link takes; the rest as leaves.

    `members` are those that fetch (see representatives). Hosts of equal links stay together by subnet, the head's own
    first, so that the bytes cross from one network to another once. Raises KeyError where the head is none of them.
    """
    by_name = {member.name: member for member in members}
    first = by_name[head]

    def place(member: Member) -> tuple[float, bool, str, str]:
        return -_speed_class(member), member.subnet != first.subnet, member.subnet, member.name

    others = [member for member in members if member.name != head]
    chain = tuple(member.name for member in sorted(others, key=place) if not member.belongs_on_the_tail)
    tail = [member.name for member in sorted(others, key=place) if member.belongs_on_the_tail]
    return hang(Topology(head=head, chain=chain), tail)


def hang(topology: Topology, names: Sequence[str]) -> Topology:
    """The topology with `names` as leaves, as near to the end of the chain as there is room."""
    leaves = dict(topology.leaves)
    for name in names:
        leaves[name] = _roomiest(topology.trunk, leaves)
    return topology.model_copy(update={"leaves": leaves})


def _roomiest(trunk: tuple[str, ...], leaves: Mapping[str, str]) -> str:
    count = {host: sum(upstream == host for upstream in leaves.values()) for host in trunk}
    free = [host for host in reversed(trunk) if count[host] < LEAVES_PER_HOST]
    return free[0] if free else min(reversed(trunk), key=count.__getitem__)


def _speed_class(member: Member) -> int:
    """Links within a factor of two are alike; an unknown one is taken for an ordinary one."""
    return round(math.log2(member.link_bytes_per_second or 125e6))


def _preference(member: Member) -> tuple[int, str]:
    return -_speed_class(member), member.name
