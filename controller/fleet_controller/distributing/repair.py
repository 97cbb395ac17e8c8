"""The next topology after something happened: as few hosts as possible get another upstream."""

from collections.abc import Callable, Collection

from fleet_controller.distributing.model import Topology
from fleet_controller.distributing.ordering import hang


def without(
    topology: Topology,
    gone: Collection[str],
    demoted: Collection[str],
    held_bytes: Callable[[str], int],
    unfit: Collection[str] = (),
    barred: Collection[str] | None = None,
) -> Topology | None:
    """The topology after `gone` have left it and `demoted` have nobody behind them any more; None where nobody is left.

    Whoever stood behind such a host fetches from the next one towards the head. A head that is gone, barred or unfit
    (it reaches no source) is followed by the host that has most of the bytes; a barred one is taken only where there
    is no other, and an unfit one last of all. What cannot get better stays as it is, so that repairs end.
    barred: those of the demoted that are not to be the head either; all of them unless given.
    """
    left = [name for name in topology.names if name not in gone]
    if not left:
        return None
    barred = demoted if barred is None else barred
    head = topology.head
    better = [name for name in left if name not in unfit and name not in barred]
    fit = [name for name in left if name not in unfit]
    if head in gone or (head in unfit and fit) or (head in barred and better):
        head = max(better or fit or left, key=held_bytes)
    chain = tuple(name for name in topology.chain if name in left and name not in demoted and name != head)
    trunk = {head, *chain}
    kept = {
        leaf: upstream
        for leaf, upstream in topology.leaves.items()
        if leaf in left and leaf != head and upstream in trunk
    }
    placed = {*trunk, *kept}
    loose = [name for name in left if name not in placed]
    return hang(Topology(head=head, chain=chain, leaves=kept), loose)


def successor(
    topology: Topology,
    gone: Collection[str],
    barred: Collection[str],
    held_bytes: Callable[[str], int],
    unfit: Collection[str],
) -> str | None:
    """Who would be the head after `gone` have left; None where nobody is left."""
    after = without(topology, gone, barred, held_bytes, unfit)
    return after.head if after is not None else None


def with_new(topology: Topology, name: str) -> Topology:
    """A host that came, or came back, while the rollout runs: a leaf, since nobody is to wait while it catches up."""
    return topology if name in topology.names else hang(topology, [name])


def moved_to_the_end(topology: Topology, name: str) -> Topology:
    """A host of the chain as the last one of it: what was behind it closes up."""
    chain = (*(other for other in topology.chain if other != name), name)
    return topology.model_copy(update={"chain": chain})


def changed_upstreams(before: Topology, after: Topology) -> tuple[str, ...]:
    """Hosts that are told anew whom to fetch from; everyone where the head is another one, the former one first.

    Until it is told it goes on fetching from the hub, as the new one does.
    """
    if before.head != after.head:
        return tuple(sorted(after.names, key=lambda name: name != before.head))
    old = set(before.names)
    return tuple(name for name in after.names if name not in old or before.upstream(name) != after.upstream(name))
