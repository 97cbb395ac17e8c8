"""Pieces from the upstream: asked for in order, a window at a time, checked, stored, and elsewhere when told so."""

import contextlib
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable

from fleet_agent.jobs.errors import Stopped
from fleet_agent.problem import ProblemError
from fleet_agent.relay.control import CorruptPiece, Event, HashMismatch, Peer, PeerLost, RelaySpec
from fleet_agent.relay.counters import Counters
from fleet_agent.relay.frames import LONGEST_TEXT_BYTES, Frame, Hello, Kind, ProtocolError
from fleet_agent.relay.limits import RateLimit
from fleet_agent.relay.links import Link, LinkLost, dial
from fleet_agent.relay.placing import Placer
from fleet_agent.relay.resume import take_up
from fleet_agent.relay.store import Disordered, PieceStore, StoredFile, WrongFile, WrongPiece

# Asked for ahead: enough for a link of 1 Gbit/s and 60 ms, little enough that a change of upstream wastes little.
WINDOW_BYTES = 8 << 20
FEWEST_PIECES_AHEAD = 4
MOST_PIECES_AHEAD = 128
ASKED_AT_ONCE_SHARE = 4
RETRY_SECONDS = 0.5
# Who served a wrong piece is asked again only if the controller has named nobody else for that long.
CORRUPT_RETRY_SECONDS = 10.0
HASH_WAIT_SECONDS = 0.25
DRAIN_SECONDS = 1.0
DRAINED_AT_ONCE_BYTES = 16 << 10


class Retargeted(Exception):
    """Another upstream was named."""


class Target:
    """The peer that a thread is to use: changed by orders, awaited by the thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._peer: Peer | None = None
        self.stopped = False

    def change(self, peer: Peer | None) -> None:
        with self._changed:
            self._peer = peer
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self.stopped = True
            self._changed.notify_all()

    @property
    def peer(self) -> Peer | None:
        return self._peer

    def check(self, peer: Peer | None) -> None:
        """Raises Stopped, or Retargeted where `peer` is no longer meant."""
        if self.stopped:
            raise Stopped
        if self._peer != peer:
            raise Retargeted

    def pause(self, peer: Peer | None, seconds: float) -> None:
        """Waits that long, or until another peer is meant."""
        with self._changed:
            self._changed.wait_for(lambda: self.stopped or self._peer != peer, seconds)


def greet(link: Link, spec: RelaySpec, purpose: str, on_quiet: Callable[[], None]) -> None:
    """HELLO and its answer. Raises LinkLost, ProtocolError."""
    link.send(Hello(spec.node, spec.rollout, spec.manifest.digest(), purpose).pack())
    frame = link.receive_frame(on_quiet)
    while frame.kind is Kind.ALIVE:
        frame = link.receive_frame(on_quiet)
    text = bytes(link.receive(min(frame.length, LONGEST_TEXT_BYTES), on_quiet)).decode(errors="replace")
    if frame.kind is not Kind.WELCOME:
        raise LinkLost("refused", text if frame.kind is Kind.BYE else f"{frame.kind.name} for an answer")


class Receiver:
    """The thread that writes all parts of a node that is not the head."""

    def __init__(
        self,
        spec: RelaySpec,
        store: PieceStore,
        placer: Placer,
        counters: Counters,
        limit: RateLimit,
        context: Callable[[], ssl.SSLContext | None],
        emit: Callable[[Event], None],
        fail: Callable[[Exception], None],
        lost_hashes: Callable[[], None],
    ) -> None:
        self._spec = spec
        self._store = store
        self._placer = placer
        self._counters = counters
        self._limit = limit
        self._context = context
        self._emit = emit
        self._fail = fail
        self._lost_hashes = lost_hashes
        self._head_name = ""
        self.target = Target()
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)

    def start(self, upstream: Peer | None, head: Peer | None) -> None:
        self.retarget(upstream, head)
        self._thread.start()

    def retarget(self, upstream: Peer | None, head: Peer | None) -> None:
        self._head_name = head.name if head is not None else ""
        self.target.change(upstream)

    def stop(self) -> None:
        """Returns once nothing is written any more."""
        self.target.stop()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self.target.stopped:
                peer = self.target.peer
                if peer is None or self._store.all_whole:
                    self.target.pause(peer, RETRY_SECONDS)
                else:
                    self.target.pause(peer, self._session(peer))
        except Stopped:
            pass
        except (ProblemError, OSError) as error:
            self._fail(error)

    def _session(self, peer: Peer) -> float:
        """One link to the upstream, until it ends; how long to wait before the next."""
        link: Link | None = None
        try:
            link = dial(peer, self._context())
            link.expect(self._spec.manifest.piece_bytes)
            greet(link, self._spec, "pieces", lambda: self.target.check(peer))
            self._pull(link, peer)
            return 0.0
        except Retargeted:
            return 0.0
        except Disordered:
            return 0.0
        except WrongPiece:
            return CORRUPT_RETRY_SECONDS
        except LinkLost as lost:
            self._emit(PeerLost(peer.name, "pieces", lost.reason, lost.detail))
        except ProtocolError as error:
            self._emit(PeerLost(peer.name, "pieces", "protocol", str(error)))
        finally:
            self._counters.interrupted()
            if link is not None:
                link.close()
        return RETRY_SECONDS

    def _pull(self, link: Link, peer: Peer) -> None:
        """Returns once every file is whole."""
        ahead: deque[tuple[int, int]] = deque()
        self._counters.connected_to(peer.name)
        while True:
            self.target.check(peer)
            self._ask(link, ahead)
            if not ahead:
                if self._store.all_whole:
                    return
                self._next_file(peer)
                continue
            length = self._spec.manifest.length(*ahead[0])
            frame = link.receive_frame(lambda: self.target.check(peer), length)
            if frame.kind is Kind.PIECE:
                self._take(link, peer, frame, ahead)
            elif frame.kind is Kind.HASHES and peer.name == self._head_name:
                data = link.receive(frame.length, lambda: self.target.check(peer))
                self._store.add_hashes(frame.file, frame.piece, data)
            elif frame.kind is Kind.BYE:
                text = bytes(link.receive(frame.length, lambda: self.target.check(peer)))
                raise LinkLost("refused", text.decode(errors="replace"))
            elif frame.kind is not Kind.ALIVE:
                raise ProtocolError(f"{frame.kind.name} from an upstream")

    def _ask(self, link: Link, ahead: deque[tuple[int, int]]) -> None:
        """Several at once: a request for each piece would wake the other side once more for each."""
        most = max(FEWEST_PIECES_AHEAD, min(MOST_PIECES_AHEAD, WINDOW_BYTES // self._spec.manifest.piece_bytes))
        if len(ahead) > most - most // ASKED_AT_ONCE_SHARE:
            return
        requests = bytearray()
        while len(ahead) < most:
            wanted = self._store.next_wanted(ahead[-1] if ahead else None)
            if wanted is None:
                break
            ahead.append(wanted)
            requests += Frame(Kind.REQUEST, *wanted).pack()
        if requests:
            link.send(bytes(requests))

    def _next_file(self, peer: Peer) -> None:
        """Takes up the next file; one without pieces, or all of whose pieces are there, is whole with that."""
        file = self._store.first_unfinished()
        if file is None:
            return
        if not file.taken_up:
            take_up(self._store, file, lambda: self.target.check(peer), self._emit)
        if file.verified == file.pieces:
            self._check_whole(file, lambda: self._store.check_whole(file))

    def _take(self, link: Link, peer: Peer, frame: Frame, ahead: deque[tuple[int, int]]) -> None:
        wanted = ahead[0]
        if (frame.file, frame.piece) != wanted or frame.length != self._spec.manifest.length(*wanted):
            raise ProtocolError("a piece that was not asked for")
        # Between pieces a change of upstream is followed at once; within one only where nothing comes any more.
        view = link.receive(frame.length, lambda: self.target.check(peer), self._limit, self._counters.received)
        file = self._store.files[frame.file]
        while not self._store.wait_for_hash(file, frame.piece, HASH_WAIT_SECONDS):
            self.target.check(peer)
        self._check_whole(file, lambda: self._put(link, peer, frame, view))
        self._placer.wrote(file, frame.length)
        ahead.popleft()

    def _put(self, link: Link, peer: Peer, frame: Frame, view: memoryview) -> bool:
        try:
            return self._store.put(frame.file, frame.piece, view)
        except WrongPiece:
            self._counters.refused += 1
            self._emit(CorruptPiece(peer.name, self._store.files[frame.file].entry.path, frame.piece))
            self._tell_refused(link, frame)
            raise

    def _tell_refused(self, link: Link, frame: Frame) -> None:
        """Its disk may be damaged, so it is to know; then what it has sent already is read away until it closes."""
        deadline = time.monotonic() + DRAIN_SECONDS

        def check() -> None:
            if time.monotonic() > deadline:
                raise Retargeted

        with contextlib.suppress(LinkLost, Retargeted):
            link.send(Frame(Kind.REFUSED, frame.file, frame.piece).pack())
            while True:
                link.receive(DRAINED_AT_ONCE_BYTES, check)
                check()

    def _check_whole(self, file: StoredFile, step: Callable[[], bool]) -> None:
        try:
            if step():
                self._placer.whole(file)
        except WrongFile:
            self._emit(HashMismatch(self._head_name, file.entry.path))
            self._lost_hashes()
            raise Disordered from None
