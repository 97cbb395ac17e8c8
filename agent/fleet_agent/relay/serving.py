"""The data port: who may take pieces and hashes, and the threads that send them.

A stranger costs one thread with a few kilobytes for at most HANDSHAKE_SECONDS; no byte of his reaches a file name.
"""

import contextlib
import socket
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator

from fleet_agent.relay.control import Event, PeerRefused, RelaySpec
from fleet_agent.relay.counters import Counters
from fleet_agent.relay.frames import (
    HASHES_AT_ONCE,
    HEAD_BYTES,
    Frame,
    Hello,
    Kind,
    ProtocolError,
    read_hello,
    text_frame,
    unpack,
)
from fleet_agent.relay.limits import RateLimit
from fleet_agent.relay.links import ALIVE_SECONDS, HANDSHAKE_SECONDS, NotAllowed, admit, listen, reset, tune
from fleet_agent.relay.manifest import DIGEST_BYTES
from fleet_agent.relay.outflow import ServerLink
from fleet_agent.relay.receiving import MOST_PIECES_AHEAD
from fleet_agent.relay.store import Loan, PieceStore
from fleet_agent.relay.tls import TlsSession

FRAME_SECONDS = 5.0
UNACKNOWLEDGED_MILLISECONDS = 10_000
STRANGERS_AT_ONCE = 32
STRANGERS_PER_ADDRESS = 4
REFUSALS_TOLD_PER_SECOND = 4
# A head's hashes go out this often at most: many small sends for each piece would cost more than they are worth.
HASH_INTERVAL_SECONDS = 0.02
BECOMING_HEAD_SECONDS = 30.0
PIECES_AT_ONCE = 4
PURPOSES = ("pieces", "hashes")


class Wake:
    """News for a thread that waits in select(), for which it arms this before it looks at how things stand: who changes
    them afterwards finds it armed, and who does so while the thread is at work has nothing to do."""

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)
        self._armed = False

    def arm(self) -> None:
        self._armed = True

    def __call__(self) -> None:
        if self._armed:
            self._armed = False
            with contextlib.suppress(OSError):
                self._writer.send(b"!")

    def close(self) -> None:
        self._writer.close()
        self.reader.close()


class Server:
    """Accepts, authenticates, and gives each peer one thread for each purpose."""

    def __init__(
        self,
        spec: RelaySpec,
        store: PieceStore,
        counters: Counters,
        limit: RateLimit,
        context: Callable[[], ssl.SSLContext | None],
        emit: Callable[[Event], None],
    ) -> None:
        self._spec = spec
        self._digest = spec.manifest.digest()
        self._store = store
        self._counters = counters
        self._limit = limit
        self._context = context
        self._emit = emit
        self._lock = threading.Lock()
        self._strangers: Counter[str] = Counter()
        self._links: dict[tuple[str, str], ServerLink] = {}
        self._allowed = frozenset(spec.allowed) - {spec.node}
        self._refusals: deque[float] = deque(maxlen=REFUSALS_TOLD_PER_SECOND)
        self.is_head = False
        self.on_damage: Callable[[int, int], None] = lambda file, piece: None
        self._listener = listen(spec.listen_host, spec.listen_port)
        self.address = self._listener.getsockname()
        self._closing = False
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    def allow(self, names: tuple[str, ...]) -> None:
        """Cuts off who is no longer named."""
        with self._lock:
            self._allowed = frozenset(names) - {self._spec.node}
            gone = [link for (name, _), link in self._links.items() if name not in self._allowed]
        for link in gone:
            link.interrupt()

    def lead(self, is_head: bool) -> None:
        """Whether this node announces hashes."""
        with self._lock:
            self.is_head = is_head
            gone = [link for (_, purpose), link in self._links.items() if purpose == "hashes" and not is_head]
        for link in gone:
            link.interrupt()

    def downstream(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(sorted(name for name, purpose in self._links if purpose == "pieces"))

    def close(self) -> None:
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            links = list(self._links.values())
        for link in links:
            link.interrupt()

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection, address = self._listener.accept()
            except OSError:
                if self._closing:
                    return
                time.sleep(ALIVE_SECONDS)  # out of descriptors, most likely: those of strangers end by themselves
                continue
            host = str(address[0])
            with self._lock:
                crowded = self._strangers[host] >= STRANGERS_PER_ADDRESS
                crowded = crowded or self._strangers.total() >= STRANGERS_AT_ONCE
                if not crowded:
                    self._strangers[host] += 1
            if crowded:
                reset(connection)
                continue
            threading.Thread(target=self._meet, args=(connection, host), name="serve", daemon=True).start()

    def _meet(self, connection: socket.socket, host: str) -> None:
        """A stranger's thread; his peer's once he has proved who he is."""
        try:
            try:
                link, hello = self._introduce(connection, host)
            finally:
                with self._lock:
                    self._strangers[host] -= 1
                    if not self._strangers[host]:
                        del self._strangers[host]
            self._serve(link, hello)
        except (OSError, EOFError, ProtocolError, NotAllowed):
            pass
        finally:
            reset(connection)

    def _introduce(self, connection: socket.socket, host: str) -> tuple[ServerLink, Hello]:
        claimed, link = "", None
        try:
            tune(connection, UNACKNOWLEDGED_MILLISECONDS)
            connection.settimeout(HANDSHAKE_SECONDS)
            tls = self._begin_tls(connection)
            link = ServerLink(connection, tls)
            frame = unpack(link.receive(HEAD_BYTES, HANDSHAKE_SECONDS))
            if frame.kind is not Kind.HELLO:
                raise ProtocolError(f"{frame.kind.name} for a greeting")
            hello = read_hello(link.receive(frame.length, HANDSHAKE_SECONDS))
            claimed = hello.node
            self._admit(link, hello)
            return link, hello
        except (OSError, EOFError, ProtocolError, NotAllowed) as error:
            self._refuse(link, host, claimed, error)
            raise

    def _begin_tls(self, connection: socket.socket) -> TlsSession | None:
        context = self._context()
        if context is None:
            return None
        tls = TlsSession(context, server_side=True)
        tls.handshake(connection, HANDSHAKE_SECONDS)
        return tls

    def _admit(self, link: ServerLink, hello: Hello) -> None:
        with self._lock:
            allowed = self._allowed
        admit(link.certified_name, hello.node, allowed)
        if hello.rollout != self._spec.rollout or hello.manifest != self._digest:
            raise NotAllowed("it belongs to another rollout")
        if hello.purpose not in PURPOSES:
            raise ProtocolError("it wants neither pieces nor hashes")

    def _refuse(self, link: ServerLink | None, host: str, claimed: str, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        if link is not None and isinstance(error, NotAllowed):
            with contextlib.suppress(OSError):
                link.send(text_frame(Kind.BYE, reason))
                link.connection.shutdown(socket.SHUT_WR)
        now = time.monotonic()
        with self._lock:
            if len(self._refusals) == REFUSALS_TOLD_PER_SECOND and now - self._refusals[0] < 1.0:
                return
            self._refusals.append(now)
        self._emit(PeerRefused(host, claimed[:80], reason[:200]))

    def _serve(self, link: ServerLink, hello: Hello) -> None:
        key = (hello.node, hello.purpose)
        with self._lock:
            before, self._links[key] = self._links.get(key), link
        if before is not None:
            before.interrupt()  # it has lost that link, whether we have noticed or not
        try:
            link.send(text_frame(Kind.WELCOME, {"node": self._spec.node}))
            with self._woken() as wake:
                if hello.purpose == "pieces":
                    PieceSession(link, self._store, self._counters, self._limit, wake, self.on_damage).run()
                else:
                    HashSession(link, self._store, wake).run(lambda: self.is_head)
        finally:
            with self._lock:
                if self._links.get(key) is link:
                    del self._links[key]

    @contextlib.contextmanager
    def _woken(self) -> Iterator[Wake]:
        wake = Wake()
        try:
            with self._store.listening(wake):
                yield wake
        finally:
            wake.close()


class PieceSession:
    """Answers one peer's requests, in their order, each as soon as its piece is here."""

    def __init__(
        self,
        link: ServerLink,
        store: PieceStore,
        counters: Counters,
        limit: RateLimit,
        wake: Wake,
        on_damage: Callable[[int, int], None],
    ) -> None:
        self._link = link
        self._store = store
        self._counters = counters
        self._limit = limit
        self._wake = wake
        self._on_damage = on_damage
        self._asked: deque[tuple[int, int]] = deque()
        self._loan = Loan()
        self._unread = b""  # the beginning of a frame
        self._unread_since = 0.0

    def run(self) -> None:
        """Until the link ends, which raises OSError, EOFError or ProtocolError."""
        with contextlib.closing(self._loan):
            while True:
                self._send_what_is_here()
                self._wake.arm()
                ready = bool(self._asked) and self._store.has(*self._asked[0])
                if self._link.wait(self._wake.reader, 0.0 if ready else ALIVE_SECONDS):
                    self._read()
                elif self._unread and time.monotonic() - self._unread_since > FRAME_SECONDS:
                    raise TimeoutError("a frame took too long to come")
                self._link.say_alive()

    def _send_what_is_here(self) -> None:
        """A few pieces, before the peer is listened to again."""
        for _ in range(PIECES_AT_ONCE):
            if not self._asked or not self._store.has(*self._asked[0]):
                return
            self._send(*self._asked.popleft())

    def _read(self) -> None:
        if not self._unread:
            self._unread_since = time.monotonic()
        data = self._unread + self._link.receive_some()
        whole = len(data) - len(data) % HEAD_BYTES
        for at in range(0, whole, HEAD_BYTES):
            self._hear(unpack(data[at : at + HEAD_BYTES]))
        self._unread = data[whole:]

    def _hear(self, frame: Frame) -> None:
        if frame.kind is Kind.REQUEST:
            self._check_range(frame)
            if len(self._asked) >= 2 * MOST_PIECES_AHEAD:
                raise ProtocolError("too many requests at once")
            self._asked.append((frame.file, frame.piece))
        elif frame.kind is Kind.REFUSED:
            self._check_range(frame)
            self._on_damage(frame.file, frame.piece)
            raise EOFError
        elif frame.kind is not Kind.ALIVE:
            raise ProtocolError(f"{frame.kind.name} on a link for pieces")

    def _check_range(self, frame: Frame) -> None:
        files = self._store.files
        if frame.file >= len(files) or frame.piece >= files[frame.file].pieces:
            raise ProtocolError("there is no such piece")

    def _send(self, file: int, piece: int) -> None:
        place = self._store.lend(file, piece, self._loan)
        if place is None:
            raise EOFError
        descriptor, offset, length = place
        head = Frame(Kind.PIECE, file, piece, length).pack()
        self._link.send_file(head, descriptor, offset, length, self._limit, self._counters.sent)


class HashSession:
    """Tells one peer the hashes that it does not know, as they come to be."""

    def __init__(self, link: ServerLink, store: PieceStore, wake: Wake) -> None:
        self._link = link
        self._store = store
        self._wake = wake
        self._position = [0] * len(store.files)
        self._first = 0
        self._taken_back = -1

    def run(self, is_head: Callable[[], bool]) -> None:
        """Until the link ends, which raises OSError, EOFError or ProtocolError.

        Orders reach hosts in any order: who asks before this node has been made the head waits a little.
        """
        deadline = time.monotonic() + BECOMING_HEAD_SECONDS
        while not is_head():
            if time.monotonic() > deadline:
                self._link.send(text_frame(Kind.BYE, "this node is not the head"))
                raise EOFError
            time.sleep(HASH_INTERVAL_SECONDS)
            self._link.say_alive()
        for number, file in enumerate(self._store.files):
            frame = unpack(self._link.receive(HEAD_BYTES, FRAME_SECONDS))
            if frame.kind is not Kind.KNOWN or frame.file != number or frame.piece > file.pieces:
                raise ProtocolError("it does not say what it knows")
            self._position[number] = frame.piece
        self._taken_back = self._store.taken_back
        while True:
            self._wake.arm()
            sent = self._tell_news()
            time.sleep(HASH_INTERVAL_SECONDS)
            if self._link.wait(self._wake.reader, 0.0 if sent else ALIVE_SECONDS):
                frame = unpack(self._link.receive(HEAD_BYTES, FRAME_SECONDS))
                if frame.kind is not Kind.ALIVE:
                    raise ProtocolError(f"{frame.kind.name} on a link for hashes")
            self._link.say_alive()

    def _tell_news(self) -> bool:
        """Whether anything was sent. Hashes that were taken back are followed by the new ones, from the start."""
        taken_back = self._store.taken_back
        if taken_back != self._taken_back:
            self._taken_back = taken_back
            self._position = [0] * len(self._position)
            self._first = 0
        sent = False
        for file in self._store.files[self._first :]:
            number, position = file.number, self._position[file.number]
            data = self._store.hashes_from(number, position, HASHES_AT_ONCE)
            if data:
                self._link.send(Frame(Kind.HASHES, number, position, len(data)).pack() + data)
                self._position[number] = position + len(data) // DIGEST_BYTES
                sent = True
            if self._position[number] < file.pieces:
                break  # the head reads one file after the other
            if number == self._first:
                self._first += 1
        return sent
