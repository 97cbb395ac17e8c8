"""The next topology after something happened: as few hosts as possible get another upstream."""

from collections.abc import Callable, Collection

from fleet_controller.distributing.model import Topology
from fleet_controller.distributing.ordering import hang

# Who is ahead by less than that does not become the head before who stands nearer to the old one.
WORTH_A_DETOUR_BYTES = 16 << 20


def without(
    topology: Topology,
    gone: Collection[str],
    demoted: Collection[str],
    verified_bytes: Callable[[str], int],
    unfit: Collection[str] = (),
) -> Topology | None:
    """The topology after `gone` have left it and `demoted` have nobody behind them any more; None where nobody is left.

    Whoever stood behind such a host fetches from the next one towards the head. A head that is gone, demoted or unfit
    (it reaches no source) is followed by the host that has most of the bytes; a demoted one is taken only where there
    is no other, and an unfit one last of all. What cannot get better stays as it is, so that repairs end.
    """
    left = [name for name in topology.names if name not in gone]
    if not left:
        return None
    head = topology.head
    better = [name for name in left if name not in unfit and name not in demoted]
    fit = [name for name in left if name not in unfit]
    if head in gone or (head in unfit and fit) or (head in demoted and better):
        head = _next_head(topology, left, better, fit, verified_bytes)
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


def _next_head(
    topology: Topology, left: list[str], better: list[str], fit: list[str], verified_bytes: Callable[[str], int]
) -> str:
    """Of the chain if it can be, then of the leaves, then the demoted; those most of the way first."""
    groups = ([name for name in better if name in topology.chain], better, fit, left)
    candidates = next(group for group in groups if group)
    most = max(verified_bytes(name) for name in candidates)
    return next(name for name in candidates if verified_bytes(name) >= most - WORTH_A_DETOUR_BYTES)


def with_new(topology: Topology, name: str) -> Topology:
    """A host that came, or came back, while the rollout runs: a leaf, since nobody is to wait while it catches up."""
    return topology if name in topology.names else hang(topology, [name])


def moved_to_the_end(topology: Topology, name: str) -> Topology:
    """A host of the chain as the last one of it: what was behind it closes up."""
    chain = (*(other for other in topology.chain if other != name), name)
    return topology.model_copy(update={"chain": chain})


def changed_upstreams(before: Topology, after: Topology) -> tuple[str, ...]:
    """Hosts that are told anew whom to fetch from; everyone where the head is another one."""
    if before.head != after.head:
        return after.names
    old = set(before.names)
    return tuple(name for name in after.names if name not in old or before.upstream(name) != after.upstream(name))
