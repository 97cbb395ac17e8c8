"""What a caller may ask of bring-up."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from fleet_controller.bringup.wheels import Release

# How long a new agent may take from its start until it answers the handshake through the real transport.
HANDSHAKE_LIMIT_SECONDS = 30.0


@dataclass(frozen=True)
class UpOptions:
    """`wheel_folder`: third-party wheels for the hosts' platforms, for hosts without an index (may hold uv's wheel and
    an archive of Python, too). `fetch_wheels`: the controller fetches such wheels itself, for each host's platform.
    `release`: another agent than this controller's own (tests)."""

    wheel_folder: Path | None = None
    fetch_wheels: bool = False
    force: bool = False
    release: Release | None = None
    handshake_limit_seconds: float = HANDSHAKE_LIMIT_SECONDS
    # None: chosen by what the host has. "background" for demos and tests, where no service manager should be touched.
    manager: str | None = None
    # Hosts of one platform need the same wheels: one of them fetches, the others wait and find them.
    fetching: asyncio.Lock = field(default_factory=asyncio.Lock, compare=False)
