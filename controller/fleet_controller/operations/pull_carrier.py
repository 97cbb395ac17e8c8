"""One run of a pull in this process: opens it, feeds the conductor with what is heard, carries out what follows."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

from pydantic import ValidationError

from fleet_controller.distributing import messages
from fleet_controller.distributing.conductor import Conductor, ConductorState, Instruction
from fleet_controller.distributing.messages import order_line, parse_event
from fleet_controller.domain.base import EnvironmentVariable, Problem
from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.jobs import JobState
from fleet_controller.domain.pulls import PlannedPull, PullState
from fleet_controller.domain.steps import JobSpec, RelayStep, Step
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.pull_caches import PullCaches, dismiss, fetchers_again
from fleet_controller.operations.pull_ending import PullEnding
from fleet_controller.operations.pull_feeds import PullFeeds
from fleet_controller.operations.pull_link import Heard, PullLink, job_of
from fleet_controller.operations.pull_node import PullNode, labels_of
from fleet_controller.operations.pull_opening import PullOpening
from fleet_controller.operations.pull_sources import PullSources
from fleet_controller.operations.pull_telling import PullTelling
from fleet_controller.pki.names import pull_name
from fleet_controller.pulling.beginning import Candidate, choose_head, member_of, prepared, worth_remembering
from fleet_controller.pulling.pieces import piece_bytes_for
from fleet_controller.pulling.places import dial_addresses, listen_address
from fleet_controller.pulling.store import PullStore
from fleet_inventory.hosts import Host

TICK_SECONDS = 0.25
# How often the database is asked whether the pull was stopped, and told that somebody is at it.
STOPPED_EVERY_SECONDS = 0.5
TOUCH_EVERY_SECONDS = 3600.0
# Relays tell how far they are twice a second.
WELL_SECONDS = 3.0
STOP_SECONDS = 10.0


class PullCarrier:
    """Whoever makes one holds the pull's lock (PullStore.carrying_out)."""

    def __init__(self, context: FleetContext, store: PullStore, pull: PlannedPull) -> None:
        self._context = context
        self._store = store
        self._pull = pull
        self._nodes: dict[str, PullNode] = {}
        self._heard: asyncio.Queue[Heard] = asyncio.Queue()
        self._conductor: Conductor | None = None
        self._saved: ConductorState | None = None
        self._taken_over = False
        self._looked_at = 0.0
        self._touched_at = time.monotonic()
        self._telling = PullTelling(pull, self._nodes)
        self._feeds = PullFeeds(pull, lambda name, message: self._telling.show(self._nodes[name], message))
        self._opening = PullOpening(pull, self._nodes, context.pool.identities, self._telling)
        self._sources = PullSources(pull, self._nodes, self._feeds)
        self._caches = PullCaches(self._nodes, self._telling)
        self._ending = PullEnding(self._nodes, self._caches, self._sources, self._telling)

    async def run(self) -> AsyncGenerator[HostEvent]:
        """Each host ends with one `done` event, told at once; "all" is told last."""
        try:
            await self._open()
            while any(not node.told_done for node in self._nodes.values()):
                await self._hear_some()
                self._advance()
                for event in self._telling.drained():
                    yield event
            await self._close_down()
            for event in self._telling.drained():
                yield event
        finally:
            await asyncio.gather(*(node.link.close() for node in self._nodes.values()))
            await self._feeds.close()

    # -- opening ----------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        inventory = self._context.inventory().hosts
        wanted = [part.host for part in self._pull.partners]
        for name in wanted:
            if name not in inventory:
                gone = Problem(code="no-such-host", message="the host is no longer in hosts.yaml", remedy="fleet hosts")
                self._telling.add(HostEvent(host=name, stage="pull", done=True, problem=gone))
        hosts = [inventory[name] for name in wanted if name in inventory]
        addresses = await dial_addresses(hosts, self._context.pool.identities)
        labels, seen = labels_of(wanted), self._store.links()
        names = {host.name: pull_name(self._pull.pull_id, labels[host.name]) for host in hosts}
        for host in hosts:
            job = self._job(host, labels[host.name], names, listen_address(addresses))
            candidate = Candidate(
                name=names[host.name],
                address=addresses[host.name],
                labels=host.labels,
                seen_bytes_per_second=seen.get(host.name),
            )
            link = PullLink(self._context, host, candidate.name, job, self._heard.put_nowait)
            self._nodes[candidate.name] = PullNode(link, candidate, fetcher=candidate.name)
        self._feeds.know({name: node.link.host for name, node in self._nodes.items()})
        self._go_on_with(self._store.conductor(self._pull.pull_id))
        for node in self._nodes.values():
            if node.fetches:
                node.link.start()
            else:
                node.ended = True

    def _go_on_with(self, kept: ConductorState | None) -> None:
        """What another controller had decided, where it had come so far."""
        if kept is None:
            return
        self._conductor, self._saved, self._taken_over = Conductor(kept), kept, True
        self._telling.skip_reasons(len(kept.reasons))
        there = kept.topology.names if kept.topology is not None else tuple(kept.peers)
        fetchers = fetchers_again(kept.members, there, kept.gone)
        for name, node in self._nodes.items():
            node.fetcher = fetchers.get(name, "")
        self._sources.serve_again(self._conductor)

    def _job(self, host: Host, label: str, names: dict[str, str], listen_host: str) -> JobSpec:
        files, ports = self._pull.files, host.limits.ports
        rate = self._pull.rate_bytes_per_second
        step = RelayStep(
            rollout=self._pull.pull_id,
            node=names[host.name],
            allowed=tuple(sorted(names.values())),
            repository=files.repository,
            commit=files.commit,
            revision=files.revision,
            files=files.files,
            piece_bytes=piece_bytes_for(files.total_bytes, len(self._pull.partners)),
            listen_host=listen_host,
            first_port=ports.first if ports else 0,
            last_port=ports.last if ports else 0,
            upload_bytes_per_second=rate,
            download_bytes_per_second=rate,
        )
        environment = tuple(EnvironmentVariable(name=name, value=value) for name, value in host.environment.items())
        title = f"pull {files.repository} {files.quantization}".strip()
        job_id = job_of(self._pull.pull_id, label)
        return JobSpec(job_id=job_id, title=title, steps=(Step(name=title, relay=step),), environment=environment)

    # -- hearing ----------------------------------------------------------------------------------------------

    async def _hear_some(self) -> None:
        """What is there, or comes within a moment."""
        with suppress(TimeoutError):
            async with asyncio.timeout(TICK_SECONDS):
                self._hear(await self._heard.get())
        while not self._heard.empty():
            self._hear(self._heard.get_nowait())

    def _hear(self, heard: Heard) -> None:
        node = self._nodes[heard.name]
        if heard.beginning != node.link.beginning:
            return
        if heard.away is not None and node.away is None:
            self._telling.show(node, f"does not answer: {heard.away.message}")
            node.away_since = time.monotonic()
        node.away = heard.away
        if not node.fetches:  # its relay has nothing to do any more
            node.ended = node.ended or heard.ended is not None
            dismiss(node)
            return
        if heard.document is not None:
            self._document(node, heard.document, heard.fresh)
        if heard.caught_up:
            node.caught_up = True
            self._caught_up(node)
        if heard.ended is not None:
            self._job_ended(node, heard.ended, heard.problem)

    def _document(self, node: PullNode, document: dict[str, object], fresh: bool) -> None:
        """What the step tells itself; everything else is the relay's."""
        kind, reached = document.get("event"), document.get("peers")
        if kind == "prepared":
            node.prepared, node.listening = True, None
            node.candidate = prepared(node.candidate, document)
            if fresh and node.has_credentials:  # another runner of the same job
                self._opening.give_credentials(node)
        elif kind == "reached" and isinstance(reached, dict):
            node.candidate = node.candidate.model_copy(update={"reached": reached})
        else:
            with suppress(ValidationError):  # a newer agent may tell more than we know
                self._relay_told(node, parse_event(json.dumps(document)), fresh)

    def _relay_told(self, node: PullNode, event: messages.Event, fresh: bool) -> None:
        if isinstance(event, messages.Listening):
            event = event.model_copy(update={"address": node.candidate.address})
            node.listening, node.relay_ended, node.complete = event, False, False
        elif isinstance(event, messages.Complete):
            node.complete, node.snapshot = True, event.snapshot
        elif isinstance(event, messages.DamagedPart):
            node.complete = False
        elif isinstance(event, messages.Ended | messages.Failed):
            node.relay_ended = True
        elif isinstance(event, messages.Progress):
            node.serves = event.downstream
        node.tally.hear(event)
        if fresh:
            node.heard_at = time.monotonic()
            self._observe(node, event)
            self._telling.of(node, event)

    def _observe(self, node: PullNode, event: messages.Event) -> None:
        if self._conductor is not None and not self._is_about_its_way(node, event):
            self._carry(self._conductor.observe(node.name, event, time.monotonic()))

    def _is_about_its_way(self, node: PullNode, event: messages.Event) -> bool:
        """Whether a host that is fed through ssh complains of somebody who is well: its way broke, and opens again."""
        if not isinstance(event, messages.PeerLost) or not self._feeds.is_fed(node.name):
            return False
        peer = self._nodes.get(event.peer)
        return peer is not None and time.monotonic() - peer.heard_at < WELL_SECONDS

    def _caught_up(self, node: PullNode) -> None:
        """After this controller, or another one, was away: what the conductor would know had it listened."""
        if self._conductor is None:
            return
        known = self._conductor.state.peers.get(node.name)
        if node.listening is not None:
            node.has_credentials = True
            if known is None or (known.address, known.port) != (node.listening.address, node.listening.port):
                self._observe(node, node.listening)
        if node.complete:
            self._observe(node, node.completion)
            self._telling.of(node, node.completion)
        if node.relay_ended:
            self._observe(node, messages.Ended())
        self._carry([one for one in self._conductor.again() if one[0] == node.name])

    def _job_ended(self, node: PullNode, state: JobState, problem: Problem | None) -> None:
        node.ended = True
        if node.complete or node.told_done or not node.fetches:
            return
        cancelled = Problem(code="cancelled", message="its job was cancelled", remedy="repeat the command")
        early = Problem(code="relay-ended", message="its relay ended too early", remedy="repeat the command")
        node.problem = problem or (cancelled if state is JobState.CANCELLED else early)
        if self._caches.heir(node) is None:
            self._caches.failed(node)
        self._observe(node, messages.Failed(code=node.problem.code, message=node.problem.message))

    # -- going on ---------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        if self._is_stopped():
            remedy = "the same command goes on where it was"
            self._ending.fail_all(Problem(code="stopped", message="stopped; what has arrived stays", remedy=remedy))
            return
        self._hand_over()
        if self._conductor is None:
            chosen = self._opening.ready()
            if chosen:
                self._begin(chosen)
        else:
            self._feed_again(self._conductor)
            self._opening.renew_credentials()
            self._late_ones()
            self._carry(self._ending.judge(self._conductor))
        if self._conductor is None:
            return
        self._telling.reasons(self._conductor.state.reasons)
        self._telling.all()
        if self._conductor.state is not self._saved:
            self._saved = self._conductor.state
            self._store.save_conductor(self._pull.pull_id, self._saved)

    def _feed_again(self, conductor: Conductor) -> None:
        """The ways of another controller ended with it; whom a host reaches was told to that one, too.

        Only who is fed gets another route: a head that was given one would ask its hub anew.
        """
        if not self._taken_over or any(node.open and not node.caught_up for node in self._nodes.values()):
            return
        self._taken_over = False
        asked = [node for node in self._nodes.values() if node.candidate.reached is not None]
        if self._opening.feed_islands(asked, self._feeds):
            conductor.state = conductor.state.model_copy(update={"sequence": conductor.state.sequence + 1})
            self._carry([one for one in conductor.again() if self._feeds.is_fed(one[0])])

    def _begin(self, chosen: Sequence[PullNode]) -> None:
        candidates = [node.candidate for node in chosen]
        named = next((node.name for node in chosen if node.host == self._pull.source.host), "")
        head = named or choose_head(candidates)
        members = tuple(member_of(node.candidate, candidates) for node in self._nodes.values())
        self._opening.feed_islands(chosen, self._feeds)
        sources, fallback = self._sources.by_host(head), self._sources.fallback()
        self._conductor = Conductor(ConductorState(members=members, head=head, sources=sources, fallback=fallback))
        for node in chosen:
            assert node.listening is not None
            self._observe(node, node.listening)
            if node.complete:
                self._observe(node, node.completion)
                self._telling.of(node, node.completion)
        self._carry(self._conductor.begin())

    def _carry(self, instructions: Sequence[Instruction]) -> None:
        for name, order in instructions:
            if name in self._nodes:
                self._feeds.send(self._nodes[name].link, order)

    def _late_ones(self) -> None:
        """Hosts that came when the chain had begun."""
        for node in self._nodes.values():
            is_new = node.prepared and node.caught_up and node.open and not node.has_credentials and node.fetches
            if is_new and not self._caches.join(node):
                self._opening.give_credentials(node)

    def _hand_over(self) -> None:
        for lost in self._caches.hand_over():
            why = "another host fetches into its cache"
            self._observe(lost, messages.Failed(code="handed-over", message=why))

    def _is_stopped(self) -> bool:
        """Whether somebody asked for that."""
        now = time.monotonic()
        if now - self._looked_at < STOPPED_EVERY_SECONDS:
            return False
        self._looked_at = now
        if now - self._touched_at > TOUCH_EVERY_SECONDS:
            self._touched_at = now
            self._store.touch(self._pull.pull_id)
        return self._store.state(self._pull.pull_id) is PullState.STOPPED

    async def _close_down(self) -> None:
        """Relays end; what they brought stays."""
        for node in self._nodes.values():
            if not node.ended:
                node.link.order(order_line(messages.Stop()))
        deadline = time.monotonic() + STOP_SECONDS
        while any(not node.ended for node in self._nodes.values()) and time.monotonic() < deadline:
            await self._hear_some()
        problem = next((node.problem for node in self._nodes.values() if node.problem is not None), None)
        state = PullState.FAILED if problem else PullState.DONE
        state = PullState.STOPPED if self._store.state(self._pull.pull_id) is PullState.STOPPED else state
        self._store.end(self._pull.pull_id, state, problem.message if problem else "")
        rates = {node.host: node.tally.best_bytes_per_second for node in self._nodes.values()}
        self._store.save_links(worth_remembering(rates, limited=self._pull.rate_bytes_per_second > 0))
        self._telling.summary()
