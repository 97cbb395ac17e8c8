"""From what relays tell to what they are told next. No I/O and no clock: the caller says when something was heard.

`Conductor.state` is all that must outlive the controller: stored after each call that gave orders, and given back, it
goes on where it was; what relays do meanwhile needs no controller.
"""

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence

from pydantic import Field

from fleet_controller.distributing import messages, repair, slowness
from fleet_controller.distributing.messages import FolderSource, HubSource, Order, Peer, Route
from fleet_controller.distributing.model import Fault, Frozen, Member, Topology
from fleet_controller.distributing.ordering import order_members
from fleet_controller.distributing.slowness import Sample, Suspect

# A relay tells its progress twice a second; who was not heard for that long, or got nothing meanwhile, may be cut off.
HEARD_SECONDS = 1.2
FLOWING_SECONDS = 1.0
BELIEVED_AT_ONCE = frozenset({"silent", "unreachable"})
COMPLAINT_SECONDS = 10.0
JUDGING_SECONDS = 0.25
TRIAL_SECONDS = 12.0
RECOVERY_SECONDS = 1.0
# A host that is done that soon anyway is left in peace.
WORTH_A_TRIAL_SECONDS = 5.0
SAMPLES_KEPT = 64

Instruction = tuple[str, Order]


class Trial(Frozen):
    """A suspect was moved to the end; whether `successor` does better from the same server decides who is slow."""

    suspect: Suspect
    successor: str
    since_seconds: float


class ConductorState(Frozen):
    """One rollout. topology is None before it began, and once nobody is left."""

    members: tuple[Member, ...]
    head: str
    sources: dict[str, HubSource | FolderSource] = Field(default_factory=dict)  # of a host that has one of its own
    fallback: HubSource | None = None  # for any other head
    topology: Topology | None = None
    sequence: int = 0
    peers: dict[str, Peer] = Field(default_factory=dict)
    faults: dict[str, Fault] = Field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    complete: frozenset[str] = frozenset()
    failed_sources: dict[str, str] = Field(default_factory=dict)  # host -> why
    accused: dict[str, tuple[str, ...]] = Field(default_factory=dict)  # who reported wrong pieces -> of whom
    trial: Trial | None = None
    tried: frozenset[str] = frozenset()
    limited_servers: frozenset[str] = frozenset()
    reasons: tuple[str, ...] = ()  # each change of the topology in words, the newest last

    @property
    def finished(self) -> bool:
        """Whether every host that is still there has all files in place."""
        return self.topology is not None and set(self.topology.names) <= self.complete

    @property
    def stuck(self) -> str:
        """Why nothing can go on without a person: no host reaches a source; empty where it can."""
        if self.topology is None or not set(self.topology.names) <= set(self.failed_sources):
            return ""
        return next(reversed(self.failed_sources.values()))


class Conductor:
    """Feed it what is heard; carry out what it returns, in order."""

    def __init__(self, state: ConductorState) -> None:
        self.state = state
        self._history: dict[str, deque[Sample]] = defaultdict(lambda: deque(maxlen=SAMPLES_KEPT))
        self._stalled: dict[str, float] = {}
        self._heard: dict[str, float] = {}
        self._best: dict[str, float] = {}
        self._served: dict[str, dict[str, float]] = defaultdict(dict)
        self._complaints: dict[tuple[str, str], deque[float]] = defaultdict(lambda: deque(maxlen=8))
        self._judged_at = 0.0

    # -- beginning --------------------------------------------------------------------------------------------

    def begin(self) -> list[Instruction]:
        """The first routes, for the members that listen by now. Raises KeyError where the head does not."""
        state = self.state
        there = [member for member in state.members if member.name in state.peers]
        topology = order_members(there, state.head)
        return self._to(topology, f"{topology.head} is the head, {len(topology.chain)} in the chain behind it")

    def again(self) -> list[Instruction]:
        """All routes once more: after the controller was away, relays may have missed some. Repeats are harmless."""
        topology = self.state.topology
        return [] if topology is None else self._routes(topology, topology.names)

    # -- hearing ----------------------------------------------------------------------------------------------

    def observe(self, name: str, event: messages.Event, now: float) -> list[Instruction]:
        """What follows from an event of the relay on host `name`, heard at `now` (monotonic seconds)."""
        self._heard[name] = now
        if isinstance(event, messages.Listening):
            return self._listening(name, event)
        if isinstance(event, messages.Complete):
            self._change(complete=self.state.complete | {name})
        if isinstance(event, messages.DamagedPart):
            self._change(complete=self.state.complete - {name})
        if self.state.topology is None:
            return []
        if isinstance(event, messages.Progress):
            return self._progress(name, event, now)
        if isinstance(event, messages.PeerLost):
            return self._peer_lost(name, event, now)
        if isinstance(event, messages.CorruptPiece):
            return self._corrupt(name, event)
        if isinstance(event, messages.HashMismatch):
            return self._mismatch(name, event)
        if isinstance(event, messages.SourceFailed):
            return self._source_failed(name, event)
        if isinstance(event, messages.Failed | messages.Ended):
            why = event.message if isinstance(event, messages.Failed) else "its relay ended"
            return self._gone(name, why)
        return []

    def _listening(self, name: str, event: messages.Listening) -> list[Instruction]:
        state = self.state
        self._history.pop(name, None)
        self._change(
            peers={**state.peers, name: Peer(name=name, address=event.address, port=event.port)},
            gone=state.gone - {name},
            complete=state.complete - {name},
        )
        if state.topology is None or name not in {member.name for member in state.members}:
            return []
        if name not in state.topology.names:
            self._change(faults={**state.faults, name: state.faults.get(name, Fault.RETURNED)})
            return self._to(repair.with_new(state.topology, name), f"{name} came back and hangs on the tail")
        # It was away for so short a time that nobody missed it: only its port is another one.
        told = state.topology.names if name == state.topology.head else (name, *state.topology.downstream(name))
        self._change(sequence=state.sequence + 1)
        return self._routes(state.topology, told)

    def _progress(self, name: str, event: messages.Progress, now: float) -> list[Instruction]:
        samples = self._history[name]
        samples.append(
            Sample(
                at_seconds=now,
                arrived_bytes=event.received_bytes + event.source_bytes,
                verified_bytes=event.verified_bytes,
                total_bytes=event.total_bytes,
                upstream=event.upstream,
                starved_seconds=event.starved_seconds,
            )
        )
        self._stalled[name] = event.stalled_seconds
        found = slowness.rate(samples, slowness.WINDOW_SECONDS)
        if found is not None:
            self._best[name] = max(self._best.get(name, 0.0), found)
        got = slowness.rate(samples, slowness.WINDOW_SECONDS, event.upstream)
        if event.upstream and got is not None:
            served = self._served[event.upstream]
            served[name] = max(served.get(name, 0.0), got)
        if now - self._judged_at < JUDGING_SECONDS:
            return []
        self._judged_at = now
        return self._judge(now)

    # -- failures ---------------------------------------------------------------------------------------------

    def _peer_lost(self, name: str, event: messages.PeerLost, now: float) -> list[Instruction]:
        """One complaint is enough where the network itself says so and nothing speaks against it.

        Else there is a second chance: the complainer dials again by itself, and a process that has ended is told
        of by its agent.
        """
        topology = self.state.topology
        assert topology is not None
        peer = event.peer
        meant = topology.head if event.purpose == "hashes" else self._upstream(topology, name)
        if peer != meant or peer in self.state.gone:
            return []
        complaints = self._complaints[name, peer]
        complaints.append(now)
        recent = sum(now - at <= COMPLAINT_SECONDS for at in complaints)
        heard = now - self._heard.get(peer, -1e9) <= HEARD_SECONDS
        flowing = heard and self._stalled.get(peer, 0.0) <= FLOWING_SECONDS
        believed = event.reason in BELIEVED_AT_ONCE and not flowing
        if not believed and recent < 2:
            return []
        return self._demote(peer, Fault.UNREACHABLE, f"{name} has lost {peer} ({event.reason}: {event.detail})")

    def _corrupt(self, name: str, event: messages.CorruptPiece) -> list[Instruction]:
        """One wrong piece is its server's fault; wrong pieces from several servers are the receiver's own."""
        accused = tuple(dict.fromkeys((*self.state.accused.get(name, ()), event.peer)))
        self._change(accused={**self.state.accused, name: accused})
        if len(accused) == 1:
            return self._demote(event.peer, Fault.CORRUPT, f"{event.peer} sent {name} a wrong piece of {event.path}")
        faults = {host: fault for host, fault in self.state.faults.items() if host not in accused}
        self._change(faults=faults)
        return self._demote(name, Fault.CORRUPT, f"{name} finds wrong pieces of {' and '.join(accused)} alike")

    def _mismatch(self, name: str, event: messages.HashMismatch) -> list[Instruction]:
        """The head announced what is not the hub's file, unless it has proved its own copy."""
        topology = self.state.topology
        assert topology is not None
        if event.head != topology.head or event.head in self.state.complete:
            return []
        return self._demote(event.head, Fault.BAD_SOURCE, f"{event.path} of {event.head} is not the hub's file")

    def _source_failed(self, name: str, event: messages.SourceFailed) -> list[Instruction]:
        topology = self.state.topology
        assert topology is not None
        if name != topology.head:
            return []
        self._change(failed_sources={**self.state.failed_sources, name: event.message})
        if self.state.stuck:
            return []
        return self._repaired(f"{name} cannot go on fetching: {event.message}")

    def _gone(self, name: str, why: str) -> list[Instruction]:
        topology = self.state.topology
        assert topology is not None
        self._change(gone=self.state.gone | {name})
        return self._repaired(f"{name} is gone: {why}") if name in topology.names else []

    def _demote(self, name: str, fault: Fault, why: str) -> list[Instruction]:
        topology = self.state.topology
        assert topology is not None
        if name not in topology.names:
            return []
        self._change(faults={**self.state.faults, name: fault})
        return self._repaired(why)

    def _repaired(self, why: str) -> list[Instruction]:
        state = self.state
        assert state.topology is not None
        after = repair.without(state.topology, state.gone, state.faults, self._verified, state.failed_sources)
        if after is None:
            self._change(topology=None, reasons=(*state.reasons, why, "nobody is left"))
            return []
        return self._to(after, why)

    # -- slow hosts -------------------------------------------------------------------------------------------

    def _judge(self, now: float) -> list[Instruction]:
        state = self.state
        if state.trial is not None:
            return self._decide(state.trial, now)
        topology = state.topology
        assert topology is not None
        exempt = state.tried | {name for name in topology.chain if topology.upstream(name) in state.limited_servers}
        links = {m.name: m.link_bytes_per_second for m in state.members if m.link_bytes_per_second}
        suspect = slowness.find_suspect(topology, self._history, links, frozenset(exempt), self._best, self._served)
        if suspect is None or not self._worth_a_trial(suspect):
            return []
        successor = topology.chain[topology.chain.index(suspect.name) + 1]
        self._change(
            trial=Trial(suspect=suspect, successor=successor, since_seconds=now), tried=state.tried | {suspect.name}
        )
        why = (
            f"{suspect.name} gets {suspect.bytes_per_second / 1e6:.1f} MB/s from {suspect.server}: {successor} tries it"
        )
        return self._to(repair.moved_to_the_end(topology, suspect.name), why)

    def _worth_a_trial(self, suspect: Suspect) -> bool:
        last = self._history[suspect.name][-1]
        left = last.total_bytes - last.verified_bytes
        return left > WORTH_A_TRIAL_SECONDS * suspect.bytes_per_second

    def _decide(self, trial: Trial, now: float) -> list[Instruction]:
        suspect, topology = trial.suspect, self.state.topology
        assert topology is not None
        still = self._upstream(topology, trial.successor) == suspect.server
        better = slowness.improved(suspect.bytes_per_second, self._history[trial.successor], suspect.server)
        if better is None and still and now - trial.since_seconds <= TRIAL_SECONDS:
            return []
        self._change(trial=None)
        if better is None or not still:
            return []
        if better and self._recovered(suspect):
            return []
        if better:
            return self._demote(suspect.name, Fault.SLOW, f"{suspect.name} was slow: {trial.successor} is not")
        if suspect.server == topology.head:
            self._change(limited_servers=self.state.limited_servers | {suspect.server})
            return []
        return self._demote(suspect.server, Fault.SLOW, f"{suspect.server} serves slowly, whoever asks it")

    def _recovered(self, suspect: Suspect) -> bool:
        """Whether at its new place it is no longer slow either: it was its machine's load, say, and that has passed."""
        now = slowness.rate(self._history[suspect.name], RECOVERY_SECONDS)
        return now is not None and now >= slowness.BETTER_BY * max(suspect.bytes_per_second, 1.0)

    # -- carrying over ----------------------------------------------------------------------------------------

    def _to(self, after: Topology, why: str) -> list[Instruction]:
        before = self.state.topology
        changed = after.names if before is None else repair.changed_upstreams(before, after)
        self._change(topology=after, sequence=self.state.sequence + 1, reasons=(*self.state.reasons, why))
        return self._routes(after, changed)

    def _routes(self, topology: Topology, names: Sequence[str]) -> list[Instruction]:
        peers, sequence = self.state.peers, self.state.sequence
        routes: list[Instruction] = []
        for name in names:
            upstream = topology.upstream(name)
            if upstream is None:
                source = self.state.sources.get(name, self.state.fallback)
                hub = source if isinstance(source, HubSource) else None
                folder = source if isinstance(source, FolderSource) else None
                routes.append((name, Route(sequence=sequence, hub=hub, folder=folder)))
            else:
                routes.append((name, Route(sequence=sequence, head=peers[topology.head], upstream=peers[upstream])))
        return routes

    def _verified(self, name: str) -> int:
        samples = self._history.get(name)
        return samples[-1].verified_bytes if samples else 0

    def _upstream(self, topology: Topology, name: str) -> str | None:
        return topology.upstream(name) if name in topology.names else None

    def _change(self, **fields: object) -> None:
        self.state = self.state.model_copy(update=fields)

    @property
    def history(self) -> Mapping[str, Sequence[Sample]]:
        """The latest progress of each host, as heard."""
        return self._history
