"""Bytes of a dialled link, in few system calls and few wake-ups: at N = 16 those cost more than hashing does.

The kernel wakes a reader once all that it waits for is there (SO_RCVLOWAT), not at each packet; under TLS, too, since
the records' lengths are read along.
"""

import socket
import sys
from typing import Protocol

from fleet_agent.relay.tls import TlsSession

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
    """Of a TLS session whose handshake is done."""

    def __init__(self, connection: socket.socket, tls: TlsSession) -> None:
        self._connection = connection
        self._low_water = LowWater(connection)
        self._tls = tls
        self._block = memoryview(bytearray(ENCRYPTED_BLOCK_BYTES))
        self._hurried = False

    def hurry(self) -> None:
        self._hurried = True

    def read_into(self, view: memoryview, wanted: int) -> int:
        while not (count := self._tls.read_into(view)):
            answer = self._tls.unsent()
            if answer:
                self._connection.sendall(answer)
            self._low_water.set(1 if self._hurried else self._tls.records.missing(wanted))
            self._hurried = False
            received = self._connection.recv_into(self._block)
            if received == 0:
                raise EOFError
            self._tls.feed(self._block[:received])
        return count

    def send(self, data: bytes) -> None:
        self._connection.sendall(self._tls.seal(data))
