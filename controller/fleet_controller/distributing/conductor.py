"""From what relays tell to what they are told next. No I/O and no clock: the caller says when something was heard.

`Conductor.state` is all that must outlive the controller: stored after each call that gave orders, and given back, it
goes on where it was; what relays do meanwhile needs no controller.
"""

from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence

from fleet_controller.distributing import messages, repair, slowness
from fleet_controller.distributing.complaints import Complaints, Verdict
from fleet_controller.distributing.holdings import Holdings
from fleet_controller.distributing.messages import FolderSource, HubSource, Order, Peer, Route
from fleet_controller.distributing.model import Fault, Topology
from fleet_controller.distributing.ordering import order_members
from fleet_controller.distributing.slowness import Sample, Suspect
from fleet_controller.distributing.stored import ConductorState, Trial
from fleet_controller.distributing.succession import Succession

JUDGING_SECONDS = 0.25
TRIAL_SECONDS = 12.0
# A host that is done that soon anyway is left in peace.
WORTH_A_TRIAL_SECONDS = 5.0
SAMPLES_KEPT = 64
ALL_OF_IT = 1 << 62  # more bytes than any model has
ITS_RELAY_ENDED = "its relay ended"
# What is said of a process that is no more where its host still is: its agent will start another one.
NOBODY_THERE = frozenset({"closed", "refused"})

Instruction = tuple[str, Order]

__all__ = ["Conductor", "ConductorState", "Instruction"]


class Conductor:
    """Feed it what is heard; carry out what it returns, in order."""

    def __init__(self, state: ConductorState) -> None:
        self.state = state
        self._history: dict[str, deque[Sample]] = defaultdict(lambda: deque(maxlen=SAMPLES_KEPT))
        self._complaints = Complaints()
        self._holdings = Holdings(state.held_bytes)
        self._succession = Succession()
        self._total_bytes = 0
        self._best: dict[str, float] = {}
        self._served: dict[str, dict[str, float]] = defaultdict(dict)
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
        self._complaints.heard(name, event, now)
        return [*self._follow_from(name, event, now), *self._succeed(now)]

    def _follow_from(self, name: str, event: messages.Event, now: float) -> list[Instruction]:
        if isinstance(event, messages.Listening):
            return self._listening(name, event)
        if isinstance(event, messages.Complete):
            self._change(complete=self.state.complete | {name})
        if isinstance(event, messages.DamagedPart):
            self._change(complete=self.state.complete - {name})
        if isinstance(event, messages.DamagedPart | messages.HashMismatch):
            self._holdings.damaged(name)
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
        if isinstance(event, messages.Failed):
            return self._gone(name, event.message)
        if isinstance(event, messages.Ended):
            return self._ended(name, now)
        return []

    def _listening(self, name: str, event: messages.Listening) -> list[Instruction]:
        state = self.state
        self._history.pop(name, None)
        self._holdings.listening(name)
        if self._succession.awaits(name):
            self._succession.settled()
        self._change(
            peers={**state.peers, name: Peer(name=name, address=event.address, port=event.port)},
            gone=state.gone - {name},
            complete=state.complete - {name},
            faults={host: Fault.RETURNED if host == name else fault for host, fault in state.faults.items()}
            if state.faults.get(name) is Fault.UNREACHABLE  # that was said of its former process
            else state.faults,
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
        self._holdings.progress(name, event)
        self._total_bytes = event.total_bytes
        found = slowness.rate(samples, slowness.WINDOW_SECONDS)
        if found is not None:
            self._best[name] = max(self._best.get(name, 0.0), found)
        got = slowness.rate(samples, slowness.WINDOW_SECONDS, event.upstream)
        if event.upstream and got is not None:
            served = self._served[event.upstream]
            served[name] = max(served.get(name, 0.0), got)
        assert self.state.topology is not None
        if now - self._judged_at < JUDGING_SECONDS or self._succession.is_leaving(self.state.topology.head):
            return []
        self._judged_at = now
        return self._judge(now)

    # -- failures ---------------------------------------------------------------------------------------------

    def _peer_lost(self, name: str, event: messages.PeerLost, now: float) -> list[Instruction]:
        topology = self.state.topology
        assert topology is not None
        peer = event.peer
        meant = topology.head if event.purpose == "hashes" else self._upstream(topology, name)
        if peer != meant or name not in topology.names or self._succession.awaits(peer):
            return []
        why = f"{name} has lost {peer} ({event.reason}: {event.detail})"
        verdict = self._complaints.judge(name, event, peer == topology.head, now)
        if verdict is Verdict.SERVER and peer == topology.head and event.reason in NOBODY_THERE:
            self._succession.head_ended(peer, now, told=False)
            return []
        if verdict is Verdict.SERVER:
            return self._demote(peer, Fault.UNREACHABLE, why)
        if verdict is Verdict.COMPLAINER and event.purpose == "pieces" and name in topology.chain[:-1]:
            return self._to(repair.moved_to_the_end(topology, name), f"{why}: {topology.chain[1]} tries it")
        return []

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
        if name == topology.head:
            self._change(failed_sources={**self.state.failed_sources, name: event.message})
        return []

    def _ended(self, name: str, now: float) -> list[Instruction]:
        """Its agent starts it again; only a head may be worth waiting for."""
        topology = self.state.topology
        assert topology is not None
        if name != topology.head:
            return self._gone(name, ITS_RELAY_ENDED)
        self._succession.head_ended(name, now, told=True)
        return []

    def _succeed(self, now: float) -> list[Instruction]:
        """Another head, once it is time."""
        state, topology = self.state, self.state.topology
        if topology is None:
            return []
        head, succession = topology.head, self._succession
        if not succession.awaits(head):
            if head not in state.sourceless or state.stuck:
                succession.settled()
                return []
            succession.head_lacks_source(head, now)
        ended = succession.awaits(head)
        successor = repair.successor(topology, {head}, self._barred, self._holds, state.sourceless)
        held = self._holds(successor) if successor else 0
        lacking = self._holds(head) - held if self._knows(head) else ALL_OF_IT
        known = all(map(self._knows, topology.names))
        arrived = sum(self._holds(name) for name in topology.names if name != head)
        if not succession.is_due(lacking, arrived, self._total_bytes, known, now):
            return []
        told = succession.has_ended_for_sure(head)
        succession.settled()
        if ended and not told:
            return self._demote(head, Fault.UNREACHABLE, f"{head} takes no connection any more")
        if ended:
            return self._gone(head, ITS_RELAY_ENDED)
        return self._repaired(f"{head} cannot go on fetching: {state.failed_sources[head]}", state.sourceless)

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
        if self._succession.has_ended_for_sure(name):  # and is not waited for any more
            self._succession.settled()
            return self._gone(name, why)
        return self._repaired(why)

    def _repaired(self, why: str, unfit: Collection[str] | None = None) -> list[Instruction]:
        state = self.state
        assert state.topology is not None
        unfit = state.sourceless - {state.topology.head, self._richest()} if unfit is None else unfit
        after = repair.without(state.topology, state.gone, state.faults, self._holds, unfit, self._barred)
        if after is None:
            self._change(topology=None, reasons=(*state.reasons, why, "nobody is left"))
            return []
        return self._to(after, why)

    def _richest(self) -> str:
        """Who has most; without a source, too, it can head the chain until one that has a source has as much."""
        assert self.state.topology is not None
        left = [name for name in self.state.topology.names if name not in self.state.gone | self._barred]
        return max(left, key=lambda name: (self._holds(name), name not in self.state.sourceless), default="")

    @property
    def _barred(self) -> frozenset[str]:
        """Who is to head the chain only where nobody else can."""
        return frozenset(name for name, fault in self.state.faults.items() if fault is not Fault.RETURNED)

    def _knows(self, name: str) -> bool:
        return name in self.state.complete or self._holdings.knows(name)

    def _holds(self, name: str) -> int:
        return ALL_OF_IT if name in self.state.complete else self._holdings.of(name)

    # -- slow hosts -------------------------------------------------------------------------------------------

    def _judge(self, now: float) -> list[Instruction]:
        state = self.state
        if state.trial is not None:
            return self._decide(state.trial, now)
        topology = state.topology
        assert topology is not None
        links = {m.name: m.link_bytes_per_second for m in state.members if m.link_bytes_per_second}
        suspect = slowness.find_suspect(
            topology, self._history, links, state.tried, self._best, self._served, state.limited_servers
        )
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
        well = self._keeps_up(suspect.name) if better and not trial.instead_of else False
        in_time = now - trial.since_seconds <= TRIAL_SECONDS
        if in_time and ((better is None and still) or well is None):
            return []
        self._change(trial=None)
        if better is None or (not still and well is None):
            return []
        if better and trial.instead_of:
            return self._demote(suspect.name, Fault.SLOW, f"{suspect.name} serves slowly, whoever asks it")
        if better and well is False:
            return self._demote(suspect.name, Fault.SLOW, f"{suspect.name} was slow: {trial.successor} is not")
        if better or not still:
            return []
        if trial.instead_of:
            self._change(
                cleared_servers=self.state.cleared_servers | {suspect.name}, tried=self.state.tried - {trial.instead_of}
            )
            return []
        if suspect.server == topology.head:
            self._change(limited_servers=self.state.limited_servers | {suspect.server})
            return []
        return self._try_without_server(trial, now)

    def _try_without_server(self, trial: Trial, now: float) -> list[Instruction]:
        server, successor, topology = trial.suspect.server, trial.successor, self.state.topology
        assert topology is not None
        before = self._upstream(topology, server)
        got = slowness.rate(self._history[successor], slowness.WINDOW_SECONDS, server)
        if server in self.state.cleared_servers or before is None or got is None or server not in topology.chain:
            return []
        suspect = Suspect(name=server, server=before, bytes_per_second=got)
        self._change(
            trial=Trial(suspect=suspect, successor=successor, since_seconds=now, instead_of=trial.suspect.name)
        )
        why = f"{successor} gets no more from {server} than {trial.suspect.name} did: it tries {before}"
        return self._to(repair.moved_to_the_end(topology, server), why)

    def _keeps_up(self, name: str) -> bool | None:
        """Whether it does well at its new place: it was its machine's load, say, and that has passed."""
        assert self.state.topology is not None
        server = self._upstream(self.state.topology, name)
        return None if server is None else slowness.keeps_up(self._history[name], self._history[server])

    # -- carrying over ----------------------------------------------------------------------------------------

    def _to(self, after: Topology, why: str) -> list[Instruction]:
        before = self.state.topology
        changed = after.names if before is None else repair.changed_upstreams(before, after)
        held = self._holdings.of_all(member.name for member in self.state.members)
        reasons = (*self.state.reasons, why)
        self._change(topology=after, sequence=self.state.sequence + 1, reasons=reasons, held_bytes=held)
        return self._routes(after, changed)

    def _routes(self, topology: Topology, names: Sequence[str]) -> list[Instruction]:
        peers, sequence = self.state.peers, self.state.sequence
        routes: list[Instruction] = []
        for name in names:
            upstream = topology.upstream(name)
            if upstream is None:
                source = self.state.sources.get(name, self.state.fallback)
                if name in self.state.sourceless:
                    source = None
                hub = source if isinstance(source, HubSource) else None
                folder = source if isinstance(source, FolderSource) else None
                routes.append((name, Route(sequence=sequence, hub=hub, folder=folder)))
            else:
                routes.append((name, Route(sequence=sequence, head=peers[topology.head], upstream=peers[upstream])))
        return routes

    def _upstream(self, topology: Topology, name: str) -> str | None:
        return topology.upstream(name) if name in topology.names else None

    def _change(self, **fields: object) -> None:
        self.state = self.state.model_copy(update=fields)

    @property
    def history(self) -> Mapping[str, Sequence[Sample]]:
        """The latest progress of each host, as heard."""
        return self._history
