"""One relay: its threads, the orders they are given, and the events that tell how it goes.

Exactly one thread writes parts at any time: the receiver, or on the head the source reader; a change of role waits for
the one to end before the other begins.
"""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fleet_agent.artifacts.cache import HubCache
from fleet_agent.artifacts.verified import VerifiedNotes
from fleet_agent.jobs.errors import JobProblem, Stopped
from fleet_agent.problem import ProblemError
from fleet_agent.relay.control import (
    Allow,
    Complete,
    DamagedPart,
    Event,
    Limits,
    Listening,
    Order,
    Progress,
    RelaySpec,
    Route,
    Stop,
)
from fleet_agent.relay.counters import Counters
from fleet_agent.relay.credentials import NodeCredentials
from fleet_agent.relay.failing import failure_of
from fleet_agent.relay.feeding import HashFeed
from fleet_agent.relay.limits import RateLimit
from fleet_agent.relay.placing import Placer, check_disk, find_present, locked
from fleet_agent.relay.receiving import Receiver
from fleet_agent.relay.serving import Server
from fleet_agent.relay.sourcing import SourceReader
from fleet_agent.relay.store import PieceStore

PROGRESS_SECONDS = 0.5

Emit = Callable[[Event], None]


def without_tls() -> None:
    """No context: links are plain."""


class RelayNode:
    """plain: without TLS, for benchmarks; the command line alone can ask for it."""

    def __init__(self, spec: RelaySpec, emit: Emit, plain: bool = False) -> None:
        if spec.tls is None and not plain:
            remedy = "give the relay its certificates"
            raise JobProblem("no-certificate", "a relay moves nothing without mutual TLS", remedy)
        self._spec = spec
        self._emit = emit
        self._orders: queue.SimpleQueue[Order | Exception | None] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._store = PieceStore(spec.manifest, HubCache(Path(spec.hf_home)))
        self._notes = VerifiedNotes(Path(spec.machine_dir))
        self._counters = Counters()
        self._upload = RateLimit(spec.upload_bytes_per_second)
        self._download = RateLimit(spec.download_bytes_per_second)
        credentials = NodeCredentials(spec.tls) if spec.tls is not None and not plain else None
        self._dialling = credentials.dialling if credentials is not None else without_tls
        listening = credentials.listening if credentials is not None else without_tls
        self._server = Server(spec, self._store, self._counters, self._upload, listening, emit)
        self._server.on_damage = self._recheck
        self._placer: Placer | None = None
        self._receiver: Receiver | None = None
        self._feed: HashFeed | None = None
        self._source: SourceReader | None = None
        self._route: Route | None = None
        self._told_complete = False

    def order(self, order: Order) -> None:
        """From any thread; carried out in turn."""
        if isinstance(order, Stop):
            self._cancelled.set()
        self._orders.put(order)

    def _fail(self, error: Exception) -> None:
        self._orders.put(error)

    def run(self) -> int:
        """Until it is stopped (0) or cannot go on (1)."""
        host, port = self._server.address[:2]
        self._emit(Listening(self._spec.node, host, port, os.getpid()))
        try:
            self._store.cache.ensure_folders(self._spec.manifest.repository)
            self._find_present()
            with locked(self._store, self._cancelled, self._emit):
                self._find_present()
                check_disk(self._store)
                self._placer = Placer(self._store, self._notes, self._tell_placed, self._fail)
                self._carry_out_orders()
        except Stopped:
            pass
        except (ProblemError, OSError) as error:
            self._stop_writing()
            self._emit(failure_of(error, self._store))
            return 1
        finally:
            self._close()
        return 0

    def _find_present(self) -> None:
        def check() -> None:
            if self._cancelled.is_set():
                raise Stopped

        find_present(self._store, self._notes, check, self._emit)

    def _carry_out_orders(self) -> None:
        next_progress = time.monotonic()
        while not self._cancelled.is_set():
            now = time.monotonic()
            if now >= next_progress:
                self._tell_progress()
                next_progress = now + PROGRESS_SECONDS
            try:
                order = self._orders.get(timeout=max(0.0, next_progress - time.monotonic()))
            except queue.Empty:
                continue
            if isinstance(order, Exception):
                raise order
            if order is not None:
                self._carry_out(order)
            elif self._store.all_placed:
                next_progress = time.monotonic()

    def _carry_out(self, order: Order) -> None:
        if isinstance(order, Route):
            if self._route is None or order.sequence > self._route.sequence:
                self._follow(order)
        elif isinstance(order, Limits):
            self._upload.change(order.upload_bytes_per_second)
            self._download.change(order.download_bytes_per_second)
        elif isinstance(order, Allow):
            self._server.allow(order.names)

    # -- roles ------------------------------------------------------------------------------------------------

    def _follow(self, route: Route) -> None:
        self._route = route
        if route.head is None:
            self._end_receiving()
            self._end_source()
            self._server.lead(True)
            self._start_source(route)
            return
        self._end_source()
        self._server.lead(False)
        if self._receiver is not None and self._feed is not None:
            self._receiver.retarget(route.upstream, route.head)
            self._feed.target.change(route.head)
        else:
            self._start_receiving(route)

    def _start_source(self, route: Route) -> None:
        assert self._placer is not None
        self._source = SourceReader(
            self._spec, route, self._store, self._placer, self._counters, self._download, self._emit, self._fail
        )
        self._source.start()

    def _start_receiving(self, route: Route) -> None:
        assert self._placer is not None
        self._feed = HashFeed(self._spec, self._store, self._dialling, self._emit)
        self._receiver = Receiver(
            self._spec, self._store, self._placer, self._counters, self._download, self._dialling, self._emit,
            self._fail, self._feed.again,
        )  # fmt: skip
        self._feed.start(route.head)
        self._receiver.start(route.upstream, route.head)

    def _end_receiving(self) -> None:
        if self._receiver is not None and self._feed is not None:
            self._feed.stop()
            self._receiver.stop()
        self._receiver = self._feed = None

    def _end_source(self) -> None:
        if self._source is not None:
            self._source.stop()
        self._source = None

    def _recheck(self, file: int, piece: int) -> None:
        if not self._store.recheck(file, piece):
            self._told_complete = False
            self._emit(DamagedPart(self._spec.manifest.files[file].path, piece))

    def _stop_writing(self) -> None:
        """At once, unlike _close, which waits for links and for the disk: the others are to know soon."""
        for writer in (self._receiver, self._source):
            if writer is not None:
                writer.stop()

    def _close(self) -> None:
        self._server.close()
        self._end_receiving()
        self._end_source()
        if self._placer is not None:
            self._placer.stop()
        self._store.close()

    # -- telling ----------------------------------------------------------------------------------------------

    def _tell_placed(self, event: Event) -> None:
        self._emit(event)
        self._orders.put(None)  # the last file's is told to be the last at once, not at the next progress

    def _tell_progress(self) -> None:
        store, counters, route = self._store, self._counters, self._route
        missing = not store.all_whole
        self._emit(
            Progress(
                verified_bytes=store.verified_bytes(),
                total_bytes=self._spec.manifest.total_bytes,
                placed_bytes=store.placed_bytes(),
                received_bytes=counters.received_bytes,
                sent_bytes=counters.sent_bytes,
                source_bytes=counters.source_bytes,
                hashes_known=store.hashes_known(),
                bytes_per_second=round(counters.rate(), 1),
                sequence=route.sequence if route is not None else 0,
                is_head=self._server.is_head,
                upstream=counters.upstream,
                downstream=self._server.downstream(),
                stalled_seconds=round(time.monotonic() - counters.last_byte_at, 2) if missing else 0.0,
                starved_seconds=round(counters.starved_seconds(), 2),
            )
        )
        if store.all_placed and not self._told_complete:
            self._told_complete = True
            manifest = self._spec.manifest
            with contextlib.suppress(OSError):
                store.cache.write_reference(manifest.repository, manifest.revision, manifest.commit)
            snapshot = str(store.cache.snapshot(manifest.repository, manifest.commit))
            self._emit(Complete(snapshot, counters.received_bytes + counters.source_bytes))
