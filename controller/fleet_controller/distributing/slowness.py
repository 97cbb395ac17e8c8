"""Who holds the others up: judged by bytes over time, never by pieces, of which there may be few.

A host of the chain is compared with its upstream. The first of the chain has nobody to be compared with (the head may
have had everything from the start), so there, and wherever the server itself might be to blame, a trial decides: the
suspect goes to the end of the chain. If who comes after it is fast from the same server, it was the suspect; if not,
the server.
"""

from collections.abc import Collection, Mapping, Sequence

from fleet_controller.distributing.model import Frozen, Topology

WINDOW_SECONDS = 2.0
# A machine that gives its relay no processor time says so; it is looked at for longer before it is called slow.
WINDOW_OF_STARVED_SECONDS = 12.0
STARVED_SHARE = 0.2
UNHEARD_SECONDS = 1.0
SLOWER_BY = 3.0
BETTER_BY = 2.0
# What a fast host can lack without being slow: pieces under way, and half a second of its upstream's rate.
LEAST_GAP_BYTES = 2 << 20
GAP_SECONDS = 0.5
LACKING_SECONDS = 0.5


class Sample(Frozen):
    """What one progress event said. arrived_bytes: all that has ever come in, unfinished pieces included."""

    at_seconds: float
    arrived_bytes: int
    verified_bytes: int
    total_bytes: int
    upstream: str
    starved_seconds: float = 0.0


History = Mapping[str, Sequence[Sample]]


class Suspect(Frozen):
    """A host that fetches far more slowly than it should, from whom, and how fast."""

    name: str
    server: str
    bytes_per_second: float


def window(samples: Sequence[Sample], seconds: float, upstream: str | None) -> tuple[Sample, Sample] | None:
    """(first, last) sample over at least that time up to the last one, all with the same upstream; None if too few.

    upstream None takes any.
    """
    if not samples:
        return None
    last = samples[-1]
    for first in reversed(samples):
        if upstream is not None and first.upstream != upstream:
            return None
        if last.at_seconds - first.at_seconds >= seconds:
            return first, last
    return None


def rate(samples: Sequence[Sample], seconds: float, upstream: str | None = None) -> float | None:
    """Bytes a second over the window."""
    found = window(samples, seconds, upstream)
    if found is None:
        return None
    first, last = found
    return (last.arrived_bytes - first.arrived_bytes) / (last.at_seconds - first.at_seconds)


def find_suspect(
    topology: Topology,
    history: History,
    link_bytes_per_second: Mapping[str, float],
    exempt: frozenset[str],
    best_rate: Mapping[str, float],
    best_served: Mapping[str, Mapping[str, float]],
    limited: Collection[str] = (),
) -> Suspect | None:
    """The host nearest to the head that holds up who is behind it, except those `exempt`; None where all is well.

    The last of the chain holds nobody up. link_bytes_per_second: known links; best_rate: the best that each host ever
    reached, for an upstream that has finished; best_served: server -> who fetched from it -> the best it ever got;
    limited: heads from which two hosts got no more, so that a third is due what they got, whatever the links.
    """
    for name in topology.chain[:-1]:
        server = topology.upstream(name)
        assert server is not None
        if name in exempt:
            continue
        mine = _own_rate(history.get(name, ()), history.get(server, ()), server)
        if mine is None:
            continue
        if server in limited:
            due: float | None = _best_of_others(best_served.get(server, {}), name) or 0.0
        else:
            due = _due_rate(topology, name, server, history, link_bytes_per_second, best_rate, best_served)
        if due is None or mine * SLOWER_BY < due:
            return Suspect(name=name, server=server, bytes_per_second=mine)
    return None


def _own_rate(samples: Sequence[Sample], server: Sequence[Sample], name: str) -> float | None:
    """What the host gets, over its window; None where it may yet be well: too new, waiting for its server, or done."""
    if not samples or not server:
        return None
    last = samples[-1]
    if last.verified_bytes >= last.total_bytes or last.at_seconds - server[-1].at_seconds > UNHEARD_SECONDS:
        return None  # a server that is not heard any more may be cut off: that is for its downstream to tell
    found = window(samples, WINDOW_SECONDS, name)
    if found is None:
        return None
    recent = [
        sample for sample in (*samples, *server) if last.at_seconds - sample.at_seconds <= WINDOW_OF_STARVED_SECONDS
    ]
    starved = max(sample.starved_seconds for sample in recent)
    if starved > STARVED_SHARE * WINDOW_SECONDS:
        found = window(samples, WINDOW_OF_STARVED_SECONDS, name)
        if found is None:
            return None
    first = found[0]
    mine = (last.arrived_bytes - first.arrived_bytes) / (last.at_seconds - first.at_seconds)
    # It must lack what its server has, and for a while already: a server that just caught up has not been waited for.
    lacking = max(LEAST_GAP_BYTES, GAP_SECONDS * mine)
    since = last.at_seconds - LACKING_SECONDS
    if _at(server, since) - _at(samples, since) < lacking or server[-1].verified_bytes - last.verified_bytes < lacking:
        return None
    return mine


def _at(samples: Sequence[Sample], seconds: float) -> int:
    """Bytes verified at that time, as last told before it."""
    return next((sample for sample in reversed(samples) if sample.at_seconds <= seconds), samples[0]).verified_bytes


def _due_rate(
    topology: Topology,
    name: str,
    server: str,
    history: History,
    link_bytes_per_second: Mapping[str, float],
    best_rate: Mapping[str, float],
    best_served: Mapping[str, Mapping[str, float]],
) -> float | None:
    """Bytes a second that the host should get; None where nobody can say, and only a trial tells."""
    links = [link_bytes_per_second[host] for host in (name, server) if host in link_bytes_per_second]
    if server == topology.head:
        if len(links) == 2:
            return min(links)
        return _best_of_others(best_served.get(server, {}), name)
    last = history[server][-1]
    now = rate(history[server], WINDOW_SECONDS)
    if last.verified_bytes >= last.total_bytes or now is None:
        now = best_rate.get(server, 0.0)
    return min([now, *links])


def _best_of_others(served: Mapping[str, float], name: str) -> float | None:
    """The best that anybody got from a server; None where only `name` fetched from it."""
    return max(served.values()) if set(served) - {name} else None


def keeps_up(samples: Sequence[Sample], server: Sequence[Sample]) -> bool | None:
    """Whether a host gets what its server gets, over the window; None as long as that had nothing that the host lacked.

    A host that changed places has more than who serves it now, for a while, and gets nothing then, however fast it is.
    """
    if not samples or not server:
        return None
    last = samples[-1]
    if last.verified_bytes >= last.total_bytes:
        return True
    start = last.at_seconds - WINDOW_SECONDS
    if samples[0].at_seconds > start or _at(server, start) < _at(samples, start):
        return None
    got, due = last.verified_bytes - _at(samples, start), server[-1].verified_bytes - _at(server, start)
    lacks = server[-1].verified_bytes - last.verified_bytes >= LEAST_GAP_BYTES
    if got * BETTER_BY >= due or not lacks:
        return True
    return False if got * SLOWER_BY < due else None


def improved(before_bytes_per_second: float, samples: Sequence[Sample], server: str) -> bool | None:
    """Whether who took the suspect's place does far better from the same server; None while it is too early to say."""
    now = rate(samples, WINDOW_SECONDS, server)
    return None if now is None else now >= BETTER_BY * before_bytes_per_second
