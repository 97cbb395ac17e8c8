"""TLS apart from its socket: many records are taken from one read, and given to one write.

OpenSSL on a socket makes two reads and one write for each record of 16 KB, and Python a poll for each of them; a
host's CPU goes into those rather than into the cipher.
"""

import contextlib
import socket
import ssl
import time

from fleet_agent.relay.records import Records

HANDSHAKE_BLOCK_BYTES = 16 << 10


class TlsSession:
    """One side of a connection, for one thread at a time: OpenSSL's state must not be read and written at once."""

    def __init__(self, context: ssl.SSLContext, server_side: bool = False) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self.records = Records()

    def handshake(self, connection: socket.socket, seconds: float) -> None:
        """Within that time, however slowly it comes. Raises SSLError, TimeoutError, EOFError, OSError."""
        deadline = time.monotonic() + seconds
        block = memoryview(bytearray(HANDSHAKE_BLOCK_BYTES))
        while True:
            try:
                self.session.do_handshake()
                connection.sendall(self.unsent())
                return
            except ssl.SSLWantReadError:
                connection.sendall(self.unsent())
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    connection.sendall(self.unsent())  # the alert that tells the other side why
                raise
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the handshake took too long")
            connection.settimeout(left)
            count = connection.recv_into(block)
            if count == 0:
                raise EOFError
            self.feed(block[:count])

    def feed(self, data: memoryview) -> None:
        """What has come from the other side."""
        self.records.pass_over(data)
        self._incoming.write(data)

    @property
    def readable(self) -> bool:
        """Whether a whole record, or some of one, is here."""
        return self._incoming.pending > self.records.begun_bytes or self.session.pending() > 0

    def read_into(self, view: memoryview) -> int:
        """Bytes of the records that are here, as many as the view takes; 0 where none is. Raises EOFError, SSLError."""
        count = 0
        while count < len(view) and self.readable:
            try:
                read: int = self.session.read(len(view) - count, view[count:])  # type: ignore[assignment]  # typeshed
            except ssl.SSLWantReadError:
                break  # records without content for us
            if read == 0:
                if count:
                    break
                raise EOFError  # the other side has said that it ends
            count += read
        return count

    def seal(self, data: bytes | bytearray | memoryview) -> bytes:
        """The records that carry it, after whatever else is to be sent."""
        view = memoryview(data)
        while view:
            view = view[self.session.write(view) :]
        return self.unsent()

    def unsent(self) -> bytes:
        """What the session itself has to say."""
        return self._outgoing.read() if self._outgoing.pending else b""
