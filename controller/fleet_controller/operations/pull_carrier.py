"""One run of a pull in this process: the stages before the chain begins, then what the conductor makes of events."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from pydantic import ValidationError

from fleet_controller.distributing import messages
from fleet_controller.distributing.conductor import Conductor, ConductorState, Instruction
from fleet_controller.distributing.messages import FolderSource, HubSource, order_line, parse_event
from fleet_controller.domain.base import EnvironmentVariable, Problem
from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.jobs import JobState
from fleet_controller.domain.pulls import PlannedPull, PullState
from fleet_controller.domain.sizes import gibibytes
from fleet_controller.domain.steps import JobSpec, RelayStep, Step
from fleet_controller.hub.mirrors import data_endpoint, data_revision
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.pull_feeds import PullFeeds
from fleet_controller.operations.pull_link import Credentials, Heard, PullLink
from fleet_controller.pki.names import pull_name
from fleet_controller.pulling.beginning import Candidate, cannot_dial, choose_head, fetchers, member_of, prepared
from fleet_controller.pulling.pieces import piece_bytes_for
from fleet_controller.pulling.places import dial_addresses, listen_address
from fleet_controller.pulling.store import PullStore
from fleet_controller.pulling.tally import FleetTally, HostTally
from fleet_inventory.hosts import Host

# An empty endpoint would be the host's own HF_ENDPOINT again.
USUAL_HUB = "https://huggingface.co"
TICK_SECONDS = 0.25
# How long the chain's beginning waits for hosts that are slow to answer; who comes later hangs on the tail.
PREPARE_SECONDS = 30.0
LISTEN_SECONDS = 15.0
PROBE_SECONDS = 6.0
# After all others are done: how long for hosts that are away, and may come back.
CATCH_UP_SECONDS = 30.0
STOP_SECONDS = 10.0
SHOWN_EVERY_SECONDS = 0.5
# Of what is fed through an OpenSSH child, which costs the controller's machine many times what direct bytes cost.
FED_BYTES_PER_SECOND = 20_000_000


@dataclass
class _Node:
    """One host as far as it is known. `fetcher`: who fetches into the cache that they share, itself mostly; "" after
    this controller was away, for one of the others.
    """

    link: PullLink
    candidate: Candidate
    tally: HostTally = field(default_factory=HostTally)
    prepared: bool = False
    listening: messages.Listening | None = None
    relay_ended: bool = False
    complete: bool = False
    snapshot: str = ""
    away: Problem | None = None
    caught_up: bool = False
    ended: bool = False
    problem: Problem | None = None
    fetcher: str = ""
    has_credentials: bool = False
    told_done: bool = False
    shown_at: float = 0.0

    @property
    def host(self) -> str:
        return self.link.host.name

    @property
    def fetches(self) -> bool:
        return self.fetcher == self.candidate.name

    @property
    def open(self) -> bool:
        """Whether something may still come of it soon."""
        return self.problem is None and self.away is None and not self.ended


class PullCarrier:
    """Whoever makes one holds the pull's lock (PullStore.carrying_out)."""

    def __init__(self, context: FleetContext, store: PullStore, pull: PlannedPull) -> None:
        self._context = context
        self._store = store
        self._pull = pull
        self._nodes: dict[str, _Node] = {}
        self._heard: asyncio.Queue[Heard] = asyncio.Queue()
        self._out: list[HostEvent] = []
        self._conductor: Conductor | None = None
        self._saved: ConductorState | None = None
        self._told_reasons = 0
        self._stage_since = self._began = time.monotonic()
        self._probed = False
        self._finished_since: float | None = None
        self._shown_at = 0.0
        self._endpoint = 0
        self._feeds = PullFeeds(context, pull)

    async def run(self) -> AsyncGenerator[HostEvent]:
        """Each host ends with one `done` event, told at once; "all" is told last."""
        try:
            await self._open()
            while not self._is_over():
                await self._hear_some()
                await self._advance()
                for event in self._drained():
                    yield event
            await self._close_down()
            for event in self._drained():
                yield event
        finally:
            await asyncio.gather(*(node.link.close() for node in self._nodes.values()))
            await self._feeds.close()

    # -- opening ----------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        inventory = self._context.inventory().hosts
        hosts = [inventory[part.host] for part in self._pull.partners if part.host in inventory]
        for part in self._pull.partners:
            if part.host not in inventory:
                gone = Problem(code="no-such-host", message="the host is no longer in hosts.yaml", remedy="fleet hosts")
                self._out.append(HostEvent(host=part.host, stage="pull", done=True, problem=gone))
        addresses = await dial_addresses(hosts, self._context.pool.identities)
        labels = labels_of([part.host for part in self._pull.partners])
        names = {host.name: pull_name(self._pull.pull_id, labels[host.name]) for host in hosts}
        seen = self._store.links()
        for host in hosts:
            job = self._job(host, labels[host.name], names, listen_address(addresses))
            candidate = Candidate(
                name=names[host.name],
                address=addresses[host.name],
                labels=host.labels,
                seen_bytes_per_second=seen.get(host.name),
            )
            link = PullLink(self._context, host, candidate.name, job, self._heard.put_nowait)
            self._nodes[candidate.name] = _Node(link, candidate, fetcher=candidate.name)
        self._feeds.know({node.candidate.name: node.link.host for node in self._nodes.values()})
        kept = self._store.conductor(self._pull.pull_id)
        if kept is not None:
            self._conductor, self._saved = Conductor(kept), kept
            self._told_reasons = len(kept.reasons)
            members = {member.name for member in kept.members}
            for name, node in self._nodes.items():
                node.fetcher = name if name in members else ""
        for node in self._nodes.values():
            if node.fetches:
                node.link.start()
            else:
                node.ended = True

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
        job_id = f"pull-{self._pull.pull_id}-{label}"
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
        if heard.away is not None:
            if node.away is None:
                self._show(node, f"does not answer: {heard.away.message}")
            node.away = heard.away
        else:
            node.away = None
        if heard.document is not None:
            self._document(node, heard.document, heard.fresh)
        if heard.caught_up:
            node.caught_up = True
            self._caught_up(node)
        if heard.ended is not None:
            self._job_ended(node, heard.ended, heard.problem)

    def _document(self, node: _Node, document: dict[str, object], fresh: bool) -> None:
        kind = document.get("event")
        if kind == "prepared":
            node.prepared = True
            node.candidate = prepared(node.candidate, document)
            node.listening = None
            if fresh and node.has_credentials:  # another runner of the same job
                self._give_credentials(node)
            return
        if kind == "reached":
            peers = document.get("peers")
            if isinstance(peers, dict):
                node.candidate = node.candidate.model_copy(update={"reached": peers})
            return
        try:
            event = parse_event(json.dumps(document))
        except ValidationError:  # a newer agent may tell more than we know
            return
        if isinstance(event, messages.Listening):
            event = event.model_copy(update={"address": node.candidate.address})
            node.listening, node.relay_ended, node.complete = event, False, False
        node.tally.hear(event)
        if isinstance(event, messages.Complete):
            node.complete, node.snapshot = True, event.snapshot
        elif isinstance(event, messages.DamagedPart):
            node.complete = False
        elif isinstance(event, messages.Ended):
            node.relay_ended = True
        if fresh:
            self._observe(node, event)
            self._tell(node, event)

    def _observe(self, node: _Node, event: messages.Event) -> None:
        if self._conductor is not None:
            self._carry(self._conductor.observe(node.candidate.name, event, time.monotonic()))

    def _caught_up(self, node: _Node) -> None:
        """After this controller, or another one, was away: what the conductor would know had it listened."""
        if self._conductor is None:
            return
        name = node.candidate.name
        known = self._conductor.state.peers.get(name)
        if node.listening is not None:
            node.has_credentials = True
            if known is None or (known.address, known.port) != (node.listening.address, node.listening.port):
                self._observe(node, node.listening)
        if node.complete:
            done = messages.Complete(snapshot=node.snapshot, fetched_bytes=node.tally.fetched_bytes)
            self._observe(node, done)
            self._tell(node, done)
        if node.relay_ended:
            self._observe(node, messages.Ended())
        again = [one for one in self._conductor.again() if one[0] == name]
        self._carry(again)

    def _job_ended(self, node: _Node, state: JobState, problem: Problem | None) -> None:
        node.ended = True
        if node.complete or node.told_done or not node.fetches:
            return
        cancelled = Problem(code="cancelled", message="its job was cancelled", remedy="repeat the command")
        early = Problem(code="relay-ended", message="its relay ended too early", remedy="repeat the command")
        node.problem = problem or (cancelled if state is JobState.CANCELLED else early)
        self._tell_failed(node)
        if self._conductor is not None:
            self._observe(node, messages.Failed(code=node.problem.code, message=node.problem.message))

    # -- beginning --------------------------------------------------------------------------------------------

    async def _advance(self) -> None:
        if self._conductor is None:
            self._towards_the_beginning()
        else:
            self._late_ones()
            self._judge_end()
            self._tell_reasons()
        self._tell_all()
        if self._conductor is not None and self._conductor.state is not self._saved:
            self._saved = self._conductor.state
            self._store.save_conductor(self._pull.pull_id, self._saved)

    def _waited(self, seconds: float) -> bool:
        return time.monotonic() - self._stage_since > seconds

    def _towards_the_beginning(self) -> None:
        """Prepared, then listening, then asked whom they reach: only then is it known who can stand where."""
        there = [node for node in self._nodes.values() if node.open]
        if not there or (any(not node.prepared for node in there) and not self._waited(PREPARE_SECONDS)):
            return
        chosen = self._chosen([node for node in there if node.prepared])
        if not chosen:
            return
        if any(not node.has_credentials for node in chosen):
            for node in chosen:
                self._give_credentials(node)
            self._stage_since = time.monotonic()
        if any(node.listening is None for node in chosen) and not self._waited(LISTEN_SECONDS):
            return
        chosen = [node for node in chosen if node.listening is not None]
        if not chosen:
            return
        if not self._probed and len({node.candidate.address for node in chosen}) > 1:
            self._ask_whom_they_reach(chosen)
        if self._probed and any(n.candidate.reached is None for n in chosen) and not self._waited(PROBE_SECONDS):
            return
        self._begin(chosen)

    def _chosen(self, there: Sequence[_Node]) -> list[_Node]:
        """Of hosts that share a cache one; what the others hold is what it holds."""
        candidates = [node.candidate for node in there]
        head = next((node.candidate.name for node in there if node.host == self._pull.source.host), "")
        fetcher_of = fetchers(candidates, head)
        for node in there:
            if not any(other.has_credentials for other in there):
                node.fetcher = fetcher_of[node.candidate.name]
        others = [node for node in there if not node.fetches]
        for node in others:
            if not node.ended:
                node.link.order(order_line(messages.Stop()))
                node.ended = True
                self._show(node, f"shares its cache with {self._nodes[node.fetcher].host}, which fetches")
        return [node for node in there if node.fetches]

    def _give_credentials(self, node: _Node) -> None:
        signed = self._context.pool.identities.sign_pull(node.candidate.name)
        credentials: Credentials = (signed.authority_pem, signed.certificate_pem, signed.key_pem)
        node.link.order("", credentials)
        node.has_credentials = True

    def _ask_whom_they_reach(self, chosen: Sequence[_Node]) -> None:
        self._probed, self._stage_since = True, time.monotonic()
        for node in chosen:
            peers = [
                {"name": other.candidate.name, "address": other.listening.address, "port": other.listening.port}
                for other in chosen
                if other is not node and other.listening is not None
            ]
            node.link.order(json.dumps({"order": "probe", "peers": peers}))

    def _begin(self, chosen: Sequence[_Node]) -> None:
        candidates = [node.candidate for node in chosen]
        named = next((node.candidate.name for node in chosen if node.host == self._pull.source.host), "")
        head = named or choose_head(candidates)
        everybody = [node.candidate for node in self._nodes.values() if node.fetches]
        members = tuple(member_of(one, candidates) for one in everybody)
        for node in chosen:
            if cannot_dial(node.candidate, candidates):
                self._feed(node)
        state = ConductorState(members=members, head=head, sources=self._sources(head), fallback=self._fallback())
        self._conductor = Conductor(state)
        now = time.monotonic()
        for node in chosen:
            assert node.listening is not None
            self._conductor.observe(node.candidate.name, node.listening, now)
            if node.complete:
                done = messages.Complete(snapshot=node.snapshot, fetched_bytes=node.tally.fetched_bytes)
                self._conductor.observe(node.candidate.name, done, now)
                self._tell(node, done)
        self._carry(self._conductor.begin())

    def _feed(self, node: _Node) -> None:
        rate = min(self._pull.rate_bytes_per_second or FED_BYTES_PER_SECOND, FED_BYTES_PER_SECOND)
        self._feeds.feed(node.candidate.name)
        node.link.order(order_line(messages.Limits(download_bytes_per_second=rate)))
        self._show(node, f"reaches no other host: fed through ssh, at {rate / 1e6:.0f} MB/s at most")

    def _sources(self, head: str) -> dict[str, HubSource | FolderSource]:
        source = self._pull.source
        if source.served_folder:
            return {head: HubSource(endpoint=self._feeds.serve_folder(head))}
        found: dict[str, HubSource | FolderSource] = {}
        for name, node in self._nodes.items():
            if source.folder and node.host == source.host:
                found[name] = FolderSource(path=source.folder)
            elif source.endpoints:
                found[name] = _hub_source(self._endpoint_for(node), node.link.token_file)
        return found

    def _endpoint_for(self, node: _Node) -> str:
        """The host's own mirror where that one has the files, else the best one that is known."""
        own = node.link.host.environment.get("HF_ENDPOINT", "").rstrip("/")
        endpoints = self._pull.source.endpoints[self._endpoint :]
        return own if own and own in endpoints else endpoints[0] or USUAL_HUB

    def _fallback(self) -> HubSource | None:
        endpoints = self._pull.source.endpoints[self._endpoint :]
        return _hub_source(endpoints[0] or USUAL_HUB) if endpoints else None

    # -- going on ---------------------------------------------------------------------------------------------

    def _carry(self, instructions: Sequence[Instruction]) -> None:
        for name, order in instructions:
            if name in self._nodes:
                self._feeds.send(self._nodes[name].link, order)

    def _late_ones(self) -> None:
        """Hosts that came when the chain had begun."""
        for node in self._nodes.values():
            if node.prepared and node.open and not node.has_credentials and node.fetches:
                self._give_credentials(node)

    def _judge_end(self) -> None:
        assert self._conductor is not None
        state = self._conductor.state
        if state.topology is None and state.reasons:
            self._fail_all(Problem(code="nobody-left", message=state.reasons[-2], remedy="repeat the command"))
        elif state.stuck and not self._another_hub():
            remedy = "set HF_ENDPOINT to a hub that the hosts reach, or name a host that has it: --from host:NAME"
            self._fail_all(Problem(code="source-failed", message=state.stuck, remedy=remedy))
        elif state.finished:
            self._finished_since = self._finished_since or time.monotonic()
            for node in self._unfinished():
                if not node.fetcher:
                    self._tell_done(node)
            if time.monotonic() - self._finished_since > CATCH_UP_SECONDS:
                for node in self._unfinished():
                    lost = Problem(code="host-unreachable", message="it went away", remedy="repeat the command")
                    node.problem = node.away or lost
                    self._tell_failed(node)
        else:
            self._finished_since = None

    def _another_hub(self) -> bool:
        """Metadata and data of a model may be on different mirrors, and a host may reach one that another does not."""
        assert self._conductor is not None
        if self._endpoint + 1 >= len(self._pull.source.endpoints) or self._pull.source.served_folder:
            return False
        self._endpoint += 1
        state = self._conductor.state
        update: dict[str, object] = {
            "sources": self._sources(state.head),
            "fallback": self._fallback(),
            "failed_sources": {},
        }
        reason = f"no host gets on with that hub; trying {self._pull.source.endpoints[self._endpoint] or USUAL_HUB}"
        update |= {"sequence": state.sequence + 1, "reasons": (*state.reasons, reason)}
        self._conductor.state = state.model_copy(update=update)
        self._carry(self._conductor.again())
        return True

    def _unfinished(self) -> list[_Node]:
        return [node for node in self._nodes.values() if not node.told_done]

    def _is_over(self) -> bool:
        return not self._unfinished()

    def _fail_all(self, problem: Problem) -> None:
        for node in self._unfinished():
            node.problem = node.problem or problem
            self._tell_failed(node)

    async def _close_down(self) -> None:
        """Relays end; what they brought stays."""
        for node in self._nodes.values():
            if not node.ended:
                node.link.order(order_line(messages.Stop()))
        deadline = time.monotonic() + STOP_SECONDS
        while any(not node.ended for node in self._nodes.values()) and time.monotonic() < deadline:
            await self._hear_some()
        failed = [node for node in self._nodes.values() if node.problem is not None]
        reason = failed[0].problem.message if failed and failed[0].problem else ""
        self._store.end(self._pull.pull_id, PullState.FAILED if failed else PullState.DONE, reason)
        rates = {n.host: n.tally.best_bytes_per_second for n in self._nodes.values() if n.tally.best_bytes_per_second}
        self._store.save_links(rates)
        self._tell_summary()

    # -- telling ----------------------------------------------------------------------------------------------

    def _drained(self) -> list[HostEvent]:
        out, self._out = self._out, []
        return out

    def _show(self, node: _Node, message: str) -> None:
        self._out.append(HostEvent(host=node.host, stage="pull", message=message))

    def _tell(self, node: _Node, event: messages.Event) -> None:
        if isinstance(event, messages.Complete) and not node.told_done:
            self._tell_done(node)
            for other in self._nodes.values():
                if other.fetcher == node.candidate.name and other is not node and not other.told_done:
                    other.snapshot = node.snapshot
                    self._tell_done(other)
        elif isinstance(event, messages.Note):
            self._show(node, event.message)
        elif isinstance(event, messages.Progress) and not node.told_done:
            now = time.monotonic()
            if now - node.shown_at >= SHOWN_EVERY_SECONDS:
                node.shown_at = now
                self._tell_progress(node)

    def _tell_progress(self, node: _Node) -> None:
        tally = node.tally
        upstream = self._nodes.get(tally.upstream)
        origin = self._origin() if tally.is_head else f"from {upstream.host}" if upstream else "waiting"
        rate = f", {tally.bytes_per_second / 1e6:.1f} MB/s" if tally.bytes_per_second else ""
        self._out.append(
            HostEvent(
                host=node.host,
                stage="pull",
                message=f"{origin}{rate}",
                done_units=tally.verified_bytes,
                total_units=self._pull.files.total_bytes,
                unit="bytes",
            )
        )

    def _origin(self) -> str:
        source = self._pull.source
        return "from a folder" if source.folder or source.served_folder else "from the internet"

    def _tell_done(self, node: _Node) -> None:
        node.told_done = True
        fetched = node.tally.fetched_bytes
        if not node.fetches:
            other = f" with {self._nodes[node.fetcher].host}" if node.fetcher else ""
            message = f"verified: the files are in the cache that it shares{other}"
        elif fetched:
            message = f"verified: {gibibytes(self._pull.files.total_bytes)}, {gibibytes(fetched)} of it fetched"
        else:
            message = "has all files"
        result = {
            "snapshot": node.snapshot,
            "total_bytes": self._pull.files.total_bytes,
            "source_bytes": node.tally.moved("source_bytes"),
            "lab_bytes": node.tally.moved("received_bytes"),
            "seconds": round(time.monotonic() - self._began, 3),
        }
        self._out.append(
            HostEvent(
                host=node.host, stage="pull", message=message, done=True, changed=fetched > 0,
                result_json=json.dumps(result),
            )
        )  # fmt: skip

    def _tell_failed(self, node: _Node) -> None:
        if not node.told_done:
            node.told_done = True
            self._out.append(HostEvent(host=node.host, stage="pull", done=True, problem=node.problem))

    def _tell_reasons(self) -> None:
        assert self._conductor is not None
        reasons = self._conductor.state.reasons
        for reason in reasons[self._told_reasons :]:
            self._out.append(HostEvent(host="all", stage="chain", message=self._with_hosts(reason)))
        self._told_reasons = len(reasons)

    def _with_hosts(self, text: str) -> str:
        """Hosts by their own names, not those of their certificates."""
        for name, node in self._nodes.items():
            text = text.replace(name, node.host)
        return text

    def _fleet(self) -> FleetTally:
        nodes = [node for node in self._nodes.values() if node.fetches]
        return FleetTally.of([node.tally for node in nodes], self._pull.files.total_bytes)

    def _tell_all(self) -> None:
        now = time.monotonic()
        if self._conductor is None or now - self._shown_at < SHOWN_EVERY_SECONDS:
            return
        if any(node.open and not node.caught_up for node in self._nodes.values()):
            return
        self._shown_at = now
        fleet = self._fleet()
        self._out.append(
            HostEvent(
                host="all",
                stage="pull",
                message=fleet.in_words(self._origin()),
                done_units=fleet.verified_bytes,
                total_units=fleet.total_bytes,
                unit="bytes",
            )
        )

    def _tell_summary(self) -> None:
        fleet = self._fleet()
        result = {
            "pull_id": self._pull.pull_id,
            "repository": self._pull.files.repository,
            "commit": self._pull.files.commit,
            "source_bytes": fleet.source_bytes,
            "lab_bytes": fleet.lab_bytes,
            "total_bytes": self._pull.files.total_bytes,
            "seconds": round(time.monotonic() - self._began, 3),
        }
        message = f"{self._pull.files.repository}: {fleet.in_words(self._origin())}"
        self._out.append(
            HostEvent(host="all", stage="pull", message=message, done=True, result_json=json.dumps(result))
        )


def _hub_source(endpoint: str, token_file: str = "") -> HubSource:
    return HubSource(endpoint=data_endpoint(endpoint), token_file=token_file, revision=data_revision(endpoint))


def labels_of(hosts: Sequence[str]) -> dict[str, str]:
    """A label of letters, digits and dashes for each host, different for each."""
    found: dict[str, str] = {}
    for host in hosts:
        plain = re.sub(r"[^a-z0-9]+", "-", host.lower()).strip("-")[:40] or "host"
        label, number = plain, 2
        while label in found.values():
            label, number = f"{plain}-{number}", number + 1
        found[host] = label
    return found
