"""Where the hosts of a pull reach each other."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from fleet_controller.pki.keeper import IdentityKeeper
from fleet_inventory.host_file import Transport
from fleet_inventory.hosts import Host

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"


async def dial_addresses(hosts: Sequence[Host], identities: IdentityKeeper) -> dict[str, str]:
    """Each host's address as the others dial it: what leads to its agent, without ports and jump hosts.

    The controller's own machine is 127.0.0.1 where all hosts are on it, else the address it has towards the others.
    """
    names = await asyncio.gather(*(_name_of(host, identities) for host in hosts))
    found = {host.name: name for host, name in zip(hosts, names, strict=True)}
    others = [name for name in found.values() if name != LOOPBACK]
    if others:
        own = await asyncio.to_thread(_own_address_towards, others[0])
        found = {host: own if name == LOOPBACK else name for host, name in found.items()}
    return found


def listen_address(addresses: dict[str, str]) -> str:
    """Nobody else than this machine is let in where all hosts are on it."""
    return LOOPBACK if set(addresses.values()) == {LOOPBACK} else EVERYWHERE


async def _name_of(host: Host, identities: IdentityKeeper) -> str:
    if host.transport is Transport.LOCAL:
        return LOOPBACK
    if host.transport is Transport.TLS:
        enrolment = identities.enrolment(host.name)
        return enrolment.address if enrolment is not None else host.address
    from fleet_controller.transport.ssh_login import dialled_name  # loads asyncssh

    return await dialled_name(host)


def _own_address_towards(name: str) -> str:
    """No packet is sent: connecting a UDP socket only chooses a route."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(name, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(place)
            return str(probe.getsockname()[0])
    except OSError:
        return LOOPBACK
