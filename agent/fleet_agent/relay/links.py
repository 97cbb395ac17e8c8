"""Sockets between nodes: opened, authenticated, and found dead in time without false alarms.

The dialling side's end is here, the listening side's in outflow.py. A link is used by one thread at a time.
"""

import contextlib
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

from fleet_agent.relay.control import Peer, TlsFiles
from fleet_agent.relay.frames import ALIVE, HEAD_BYTES, Frame, ProtocolError, unpack
from fleet_agent.relay.inflow import Inflow, PlainInflow, TlsInflow
from fleet_agent.relay.limits import LIMITED_BLOCK_BYTES, RateLimit
from fleet_agent.relay.tls import TlsSession

TICK_SECONDS = 0.25
ALIVE_SECONDS = 0.5
CONNECT_SECONDS = 2.0
HANDSHAKE_SECONDS = 5.0
# A cut link is found by the kernel: what we say goes unacknowledged for that long. A loaded machine's kernel still
# acknowledges when its programs are late, so this makes no false alarms; a frozen program is another matter.
UNACKNOWLEDGED_MILLISECONDS = 1500
SILENT_PROGRAM_SECONDS = 10.0
RECEIVE_BUFFER_BYTES = 2 << 20
SMALL_BUFFER_BYTES = 16 << 10
BUFFERED_PAYLOADS = 3
DARWIN_CONNECTION_DROP_TIME = 0x80  # <netinet/tcp.h> TCP_RXT_CONNDROPTIME, seconds; Python has no name for it


class LinkLost(Exception):
    """A link that cannot be used any more. reason is one of PeerLost's."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class NotAllowed(Exception):
    """The other side is not who it must be."""


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Names are compared by us (certificate_name), exactly and without wildcards."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    return _context(context, files)


def server_context(files: TlsFiles) -> ssl.SSLContext:
    return _context(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files)


def _context(context: ssl.SSLContext, files: TlsFiles) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cafile=files.ca)
    context.load_cert_chain(files.certificate, files.key or None)
    return context


def certificate_name(connection: ssl.SSLObject) -> str:
    """The one DNS name of the peer's verified certificate. Raises NotAllowed."""
    certificate = connection.getpeercert() or {}
    entries: list[tuple[str, str]] = list(certificate.get("subjectAltName", ()))  # type: ignore[arg-type]
    names = [value for kind, value in entries if kind == "DNS"]
    if len(names) != 1:
        raise NotAllowed(f"the certificate names {len(names)} hosts, not one")
    return names[0]


def admit(certified: str | None, claimed: str, allowed: Collection[str]) -> None:
    """Whether a peer may stay: certified is the name in its certificate, None on a plain link. Raises NotAllowed."""
    if certified is not None and certified != claimed:
        raise NotAllowed(f"it says that it is {claimed[:80]!r}, but its certificate names {certified!r}")
    if claimed not in allowed:
        raise NotAllowed(f"{claimed[:80]!r} is not among the rollout's nodes")


def tune(connection: socket.socket, unacknowledged_milliseconds: int) -> None:
    """No delay for small frames, and the kernel's own watch over the other end."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unacknowledged_milliseconds)
    elif sys.platform == "darwin":
        seconds = -(-unacknowledged_milliseconds // 1000)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, DARWIN_CONNECTION_DROP_TIME, seconds)


def _widen(connection: socket.socket) -> None:
    """Room for what comes while a busy machine does not run us; without it the link would idle in the meantime.

    Linux makes a socket's buffer, and its window, large enough for its low-water mark, without SO_RCVBUF's limit and
    without giving up its own tuning (tcp_set_rcvlowat); the mark itself is set anew before each read.
    """
    if sys.platform == "linux":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, RECEIVE_BUFFER_BYTES)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


def dial(peer: Peer, context: ssl.SSLContext | None) -> "Link":
    """A link to `peer`, whose certificate has its name. Raises LinkLost."""
    try:
        connection = socket.create_connection((peer.address, peer.port), timeout=CONNECT_SECONDS)
    except TimeoutError:
        raise LinkLost("unreachable", "it does not answer") from None
    except ConnectionRefusedError:
        raise LinkLost("refused", "nobody listens there") from None
    except OSError as error:
        raise LinkLost("unreachable", str(error)) from None
    try:
        tune(connection, UNACKNOWLEDGED_MILLISECONDS)
        _widen(connection)
        return Link(connection, peer.name, _inflow(connection, context, peer))
    except (ssl.SSLCertVerificationError, NotAllowed) as error:
        connection.close()
        raise LinkLost("certificate", str(error)) from None
    except TimeoutError:
        connection.close()
        raise LinkLost("silent", "no answer to the greeting") from None
    except (OSError, EOFError) as error:
        connection.close()
        raise LinkLost("closed", str(error) or "the other side closed the link") from None


def _inflow(connection: socket.socket, context: ssl.SSLContext | None, peer: Peer) -> Inflow:
    if context is None:
        return PlainInflow(connection)
    tls = TlsSession(context)
    tls.handshake(connection, HANDSHAKE_SECONDS)
    if certificate_name(tls.session) != peer.name:
        raise NotAllowed(f"its certificate names {certificate_name(tls.session)!r}")
    return TlsInflow(connection, tls)


class Link:
    """The dialling side's end: waits in ticks, so that its thread can look at what else goes on.

    What comes is read into one buffer, as much as there is; frames are looked at where they lie.
    """

    def __init__(self, connection: socket.socket, peer: str, inflow: Inflow) -> None:
        self.connection = connection
        self.peer = peer
        self._inflow = inflow
        self._buffer = memoryview(bytearray(SMALL_BUFFER_BYTES))
        self._start = self._end = 0
        self._silent_seconds = 0.0
        connection.settimeout(TICK_SECONDS)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.close()

    def expect(self, largest_bytes: int) -> None:
        """Room for payloads of that size, so that a few of them are moved about at most."""
        self._make_room(BUFFERED_PAYLOADS * (largest_bytes + HEAD_BYTES))

    def send(self, data: bytes) -> None:
        """A few small frames. Raises LinkLost."""
        try:
            self._inflow.send(data)
        except OSError as error:
            raise _lost(error) from None

    def receive_frame(self, on_quiet: Callable[[], None], payload_bytes: int = 0) -> Frame:
        """The next frame's head; raises LinkLost, ProtocolError, and whatever on_quiet raises.

        payload_bytes: how long a payload is likely to follow, for which the thread may sleep on.
        """
        return unpack(self.receive(HEAD_BYTES, on_quiet, payload_bytes=payload_bytes))

    def receive(
        self,
        length: int,
        on_quiet: Callable[[], None],
        limit: RateLimit | None = None,
        on_bytes: Callable[[int], None] | None = None,
        payload_bytes: int = 0,
    ) -> memoryview:
        """That many bytes, to be used before the next call. on_quiet() is called after each tick without any; it may
        raise to give up. on_bytes() is told of them as they come."""
        self._make_room(length + payload_bytes)
        told = 0
        while True:
            there = min(length, self._end - self._start)
            if on_bytes is not None and there > told:
                on_bytes(there - told)
                told = there
            if there == length:
                view = self._buffer[self._start : self._start + length]
                self._start += length
                return view
            count = self._receive_some(length - there + payload_bytes, limit)
            if count == 0:
                on_quiet()

    def _make_room(self, length: int) -> None:
        """For `length` bytes from the start of what is there on."""
        if self._start == self._end:
            self._start = self._end = 0
        if self._start + length <= len(self._buffer):
            return
        there = self._end - self._start
        buffer = self._buffer if length <= len(self._buffer) else memoryview(bytearray(length))
        buffer[:there] = bytes(self._buffer[self._start : self._end])
        self._buffer, self._start, self._end = buffer, 0, there

    def _receive_some(self, wanted: int, limit: RateLimit | None) -> int:
        """Bytes read; 0 after a tick without any."""
        limited = limit is not None and limit.limited
        room = self._buffer[self._end : self._end + LIMITED_BLOCK_BYTES] if limited else self._buffer[self._end :]
        started = time.monotonic()
        try:
            count = self._inflow.read_into(room, min(wanted, len(room)))
        except EOFError:
            raise LinkLost("closed", "the other side closed the link") from None
        except TimeoutError as error:
            if error.errno is not None:  # the kernel has given the link up; a tick that passed has no number
                raise _lost(error) from None
            self._be_quiet(min(time.monotonic() - started, 2 * TICK_SECONDS))
            return 0
        except OSError as error:
            raise _lost(error) from None
        self._end += count
        self._silent_seconds = 0.0
        if limit is not None:
            limit.take(count)
        return count

    def _be_quiet(self, waited_seconds: float) -> None:
        """Something to acknowledge goes out, so that the kernel finds a cut. A tick that was late counts as one."""
        self._inflow.hurry()
        self._silent_seconds += waited_seconds
        if self._silent_seconds > SILENT_PROGRAM_SECONDS:
            raise LinkLost("silent", f"not a byte in {SILENT_PROGRAM_SECONDS:g} s")
        self.send(ALIVE)


def _lost(error: OSError) -> LinkLost:
    if isinstance(error, TimeoutError):
        return LinkLost("silent", "it acknowledges nothing any more")
    return LinkLost("closed", str(error) or type(error).__name__)


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(64)
    return listener


def reset(connection: socket.socket) -> None:
    """Closes at once, leaving nothing in the kernel for somebody who was turned away."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        connection.close()


def readable_by_others(path: str) -> bool:
    """Whether a private key lies open to other users."""
    return bool(Path(path).stat().st_mode & 0o077)


__all__ = ["Link", "LinkLost", "NotAllowed", "ProtocolError", "admit", "dial", "listen", "reset", "tune"]
