"""Bytes of a dialled link, in few system calls and few wake-ups: at N = 16 those cost more than hashing does.

The kernel wakes a reader once all that it waits for is there (SO_RCVLOWAT), not at each packet; under TLS, too, since
the records' lengths are read along. OpenSSL by itself would take two reads for each record of 16 KB.
"""

import contextlib
import socket
import ssl
import sys
import time
from typing import Protocol

RECORD_HEAD_BYTES = 5
# RFC 8446, 5.2: head, content type and AEAD tag beside each record's at most 2^14 bytes of content.
RECORD_EXTRA_BYTES = RECORD_HEAD_BYTES + 1 + 16
RECORD_CONTENT_BYTES = 1 << 14
LOW_WATER_BYTES = 256 << 10
ENCRYPTED_BLOCK_BYTES = 512 << 10


class Inflow(Protocol):
    def read_into(self, view: memoryview, wanted: int) -> int:
        """At least one byte, of `wanted` that are waited for. Raises TimeoutError without errno after a tick without
        so many, EOFError at the end, OSError."""

    def hurry(self) -> None:
        """The next read takes what there is."""

    def send(self, data: bytes) -> None: ...


class LowWater:
    """How much must have come before a reader is woken; nothing where the kernel is not Linux."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._bytes = 1

    def set(self, wanted: int) -> None:
        wanted = max(1, min(LOW_WATER_BYTES, wanted))
        if wanted != self._bytes and sys.platform == "linux":
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
            self._bytes = wanted


class PlainInflow:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._low_water = LowWater(connection)
        self._hurried = False

    def hurry(self) -> None:
        self._hurried = True

    def read_into(self, view: memoryview, wanted: int) -> int:
        self._low_water.set(1 if self._hurried else wanted)
        self._hurried = False
        count = self._connection.recv_into(view)
        if count == 0:
            raise EOFError
        return count

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)


class TlsInflow:
    """The client's end of a TLS connection whose records are read from the socket many at a time."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        self._connection = connection
        self._low_water = LowWater(connection)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self._incoming, self._outgoing)
        self._block = memoryview(bytearray(ENCRYPTED_BLOCK_BYTES))
        self._records = Records()
        self._hurried = False

    def handshake(self, seconds: float) -> None:
        """Raises SSLError, TimeoutError, EOFError, OSError."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.session.do_handshake()
                self._flush()
                return
            except ssl.SSLWantReadError:
                self._flush()
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._flush()  # the alert that tells the other side why
                raise
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the handshake took too long")
            self._connection.settimeout(left)
            self._fill(1)

    def hurry(self) -> None:
        self._hurried = True

    def read_into(self, view: memoryview, wanted: int) -> int:
        while True:
            try:
                count: int = self.session.read(len(view), view)  # type: ignore[assignment]  # typeshed: bytes
                return count
            except ssl.SSLWantReadError:
                pass
            self._flush()
            low_water = 1 if self._hurried else self._records.missing(wanted)
            self._hurried = False
            self._fill(low_water)

    def send(self, data: bytes) -> None:
        self.session.write(data)
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._connection.sendall(self._outgoing.read())

    def _fill(self, low_water: int) -> None:
        self._low_water.set(low_water)
        count = self._connection.recv_into(self._block)
        if count == 0:
            raise EOFError
        self._records.pass_over(self._block[:count])
        self._incoming.write(self._block[:count])


class Records:
    """Where in the stream of TLS records we are: how much of the last one is still to come."""

    def __init__(self) -> None:
        self._head = b""
        self._length = 0
        self._left = 0

    def pass_over(self, data: memoryview) -> None:
        at, end = 0, len(data)
        while True:
            at += self._left
            if at >= end:
                self._left = at - end
                return
            need = RECORD_HEAD_BYTES - len(self._head)
            self._head += data[at : at + need]
            at += need
            if at > end:
                self._left = 0
                return
            self._length = self._left = self._head[3] << 8 | self._head[4]
            self._head = b""

    def missing(self, wanted: int) -> int:
        """Before `wanted` bytes more can be decrypted, at least so many must come, when all that came has been.

        Never more than that, or a piece would lie there complete and wait for what comes after it.
        """
        if self._left:
            wanted -= self._length - (RECORD_EXTRA_BYTES - RECORD_HEAD_BYTES)
        if wanted <= 0:
            return self._left
        records = -(-wanted // RECORD_CONTENT_BYTES)
        return self._left + wanted + records * RECORD_EXTRA_BYTES - len(self._head)
