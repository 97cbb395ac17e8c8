"""The listening side's end of a link: what a peer asks for, and the pieces that it gets, in few system calls.

The socket is never waited on by itself: its thread waits for requests, for news and for the time to say ALIVE at once.
"""

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable

from fleet_agent.relay.frames import ALIVE, HEAD_BYTES
from fleet_agent.relay.limits import LIMITED_BLOCK_BYTES, RateLimit
from fleet_agent.relay.links import ALIVE_SECONDS, certificate_name
from fleet_agent.relay.tls import TlsSession

SEND_SECONDS = 15.0
TLS_BLOCK_BYTES = 256 << 10
RECEIVED_AT_ONCE_BYTES = 4096
# The head of a frame goes out in one packet with the payload's first bytes (Linux; elsewhere it costs a packet).
MSG_MORE: int = getattr(socket, "MSG_MORE", 0)


class ServerLink:
    """For one thread. tls: of a link whose handshake is done; None where it is plain."""

    def __init__(self, connection: socket.socket, tls: TlsSession | None) -> None:
        self.connection = connection
        self._tls = tls
        self._block = bytearray()  # under TLS: a frame's head and the bytes that follow, to be encrypted together
        self._sent_at = time.monotonic()
        connection.setblocking(False)

    @property
    def certified_name(self) -> str | None:
        """The name in the peer's certificate; None where the link is plain. Raises NotAllowed."""
        return None if self._tls is None else certificate_name(self._tls.session)

    def interrupt(self) -> None:
        """From another thread: whatever the link's thread waits for on it ends."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    # -- hearing ----------------------------------------------------------------------------------------------

    def wait(self, wake: socket.socket, timeout_seconds: float) -> bool:
        """Whether something can be read; False after news, which is taken from `wake`, or at the time limit."""
        if self._tls is not None and self._tls.readable:
            return True
        readable, _, _ = select.select([self.connection, wake], [], [], timeout_seconds)
        if wake in readable:
            wake.recv(RECEIVED_AT_ONCE_BYTES)
        return self.connection in readable

    def receive(self, length: int, seconds: float) -> bytearray:
        """Exactly that many bytes within that time: who sends them one by one is cut off. Raises OSError, EOFError."""
        data = bytearray(length)
        view = memoryview(data)
        deadline = time.monotonic() + seconds
        while view:
            count = self._read(view)
            view = view[count:]
            left = deadline - time.monotonic()
            if left <= 0 or not (count or select.select([self.connection], [], [], left)[0]):
                raise TimeoutError("a frame took too long to come")
        return data

    def receive_some(self) -> bytes:
        """What there is, after wait() said that there is something: at most a few hundred small frames, and under TLS
        nothing where a record is not whole yet."""
        block = memoryview(bytearray(RECEIVED_AT_ONCE_BYTES))
        return bytes(block[: self._read(block)])

    def _read(self, view: memoryview) -> int:
        """What there is; 0 for nothing yet."""
        if self._tls is None:
            return self._take(view)
        if not self._tls.readable:
            block = memoryview(bytearray(RECEIVED_AT_ONCE_BYTES))
            self._tls.feed(block[: self._take(block)])
        count = self._tls.read_into(view)
        self._push(self._tls.unsent())
        return count

    def _take(self, view: memoryview) -> int:
        try:
            count = self.connection.recv_into(view)
        except BlockingIOError:
            return 0
        if count == 0:
            raise EOFError
        return count

    # -- saying -----------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        self._push(data if self._tls is None else self._tls.seal(data))
        self._sent_at = time.monotonic()

    def say_alive(self) -> None:
        """Where nothing else was said for a while."""
        if time.monotonic() - self._sent_at >= ALIVE_SECONDS:
            self.send(ALIVE)

    def send_file(
        self, head: bytes, descriptor: int, offset: int, count: int, limit: RateLimit, on_bytes: Callable[[int], None]
    ) -> None:
        """A frame whose payload is bytes of a file: by sendfile on a plain link, by large blocks under TLS.

        Raises OSError, EOFError.
        """
        self._sent_at = time.monotonic()
        if self._tls is not None:
            self._send_blocks(self._tls, head, descriptor, offset, count, limit, on_bytes)
            return
        self._push(head, MSG_MORE)
        while count:
            block = min(count, LIMITED_BLOCK_BYTES) if limit.limited else count
            limit.take(block)
            sent = self._send_some(descriptor, offset, block)
            offset, count = offset + sent, count - sent
            on_bytes(sent)

    def _send_some(self, descriptor: int, offset: int, count: int) -> int:
        while True:
            try:
                sent = os.sendfile(self.connection.fileno(), descriptor, offset, count)
            except BlockingIOError:
                self._wait_for_room()
                continue
            if sent == 0:
                raise EOFError
            return sent

    def _send_blocks(
        self,
        tls: TlsSession,
        head: bytes,
        descriptor: int,
        offset: int,
        count: int,
        limit: RateLimit,
        on_bytes: Callable[[int], None],
    ) -> None:
        if not self._block:
            self._block = bytearray(HEAD_BYTES + TLS_BLOCK_BYTES)
        view = memoryview(self._block)
        view[:HEAD_BYTES] = head
        before = HEAD_BYTES
        while count:
            wanted = min(count, LIMITED_BLOCK_BYTES if limit.limited else TLS_BLOCK_BYTES)
            read = os.preadv(descriptor, [view[before : before + wanted]], offset)
            if not read:
                raise EOFError
            limit.take(read)
            self._push(tls.seal(view[: before + read]))
            offset, count, before = offset + read, count - read, 0
            on_bytes(read)

    def _push(self, data: bytes, flags: int = 0) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self.connection.send(view, flags) :]
            except BlockingIOError:
                self._wait_for_room()

    def _wait_for_room(self) -> None:
        _, writable, _ = select.select([], [self.connection], [], SEND_SECONDS)
        if not writable:
            raise TimeoutError("it takes nothing any more")
