"""`python -m benchmarks.relay_liar AFTER_BYTES SPEC ...`: a relay that flips a bit in each piece once it sent so much.

Its disk is right: it is the machine that lies, as one with bad memory does.
"""

import os
import sys
from collections.abc import Callable

from fleet_agent.relay.__main__ import main
from fleet_agent.relay.limits import RateLimit
from fleet_agent.relay.outflow import ServerLink


def lie(after_bytes: int) -> None:
    total = [0]

    def send_file(
        self: ServerLink,
        head: bytes,
        descriptor: int,
        offset: int,
        count: int,
        limit: RateLimit,
        on_bytes: Callable[[int], None],
    ) -> None:
        block = bytearray(os.pread(descriptor, count, offset))
        if total[0] >= after_bytes:
            block[count // 2] ^= 1
        self.send(head + bytes(block))
        total[0] += count
        on_bytes(count)

    ServerLink.send_file = send_file  # type: ignore[method-assign]


if __name__ == "__main__":
    lie(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
