"""Transport `tls`: gRPC on TCP with mutual TLS, for fleets where an SSH handshake per host costs too much.

A host is enrolled over SSH (`fleet up`), since only SSH says whose machine it is: there it makes a key and we sign it.
From then on controlling it needs no SSH. Whoever holds the authority's key can control the hosts.
"""

from __future__ import annotations

import time
from contextlib import suppress

import grpc

from fleet_controller.domain.agents import HostIdentity, IdentityStatus
from fleet_controller.pki.keeper import Enrolment, IdentityKeeper, UnusableAuthorityError
from fleet_controller.pki.names import CONTROLLER, new_label
from fleet_controller.transport.client import CHANNEL_OPTIONS, AgentClient
from fleet_controller.transport.errors import HostUnreachable, NoAgent, NotEnrolled, TransportError
from fleet_inventory.hosts import Host

# A host that vanished is noticed within their sum.
KEEPALIVE_SECONDS, KEEPALIVE_LIMIT_SECONDS = 20, 10
# For TCP, TLS and the agent's greeting together.
CONNECT_SECONDS = 10.0
ALL_ADDRESSES = "0.0.0.0"


def demand_enrolment(keeper: IdentityKeeper, host: Host) -> Enrolment:
    """How to reach a host over TLS. Raises NotEnrolled with the reason where that cannot be."""
    found = keeper.enrolment(host.name)
    remedy = f"fleet up {host.name} enrols it, over SSH"
    if found is None:
        raise NotEnrolled(host.name, "it has no certificate of this fleet yet", remedy)
    if found.revoked:
        raise NotEnrolled(host.name, "its certificate was revoked", f"{remedy} again")
    if found.way != tls_way(host):
        raise NotEnrolled(host.name, "hosts.yaml leads to another address or port than when it was enrolled", remedy)
    if found.expired(time.time()):
        raise NotEnrolled(host.name, "its certificate has expired, since nobody asked it for long", f"{remedy} again")
    return found


def tls_way(host: Host) -> str:
    """What leads to a host's port, as one text: when it changes, the enrolment says nothing about the new place."""
    return f"{host.address} {host.tls_port} {host.agent_root or ''}".strip()


def open_tls_channel(enrolment: Enrolment, keeper: IdentityKeeper) -> grpc.aio.Channel:
    """A channel to an enrolled host: only the holder of its certificate can be at the other end. Raises NotEnrolled."""
    try:
        credentials = keeper.credentials()
    except UnusableAuthorityError as error:
        raise NotEnrolled(enrolment.host, str(error)) from None
    address = f"[{enrolment.address}]" if ":" in enrolment.address else enrolment.address
    options = [
        *CHANNEL_OPTIONS,
        ("grpc.ssl_target_name_override", enrolment.name),
        ("grpc.default_authority", enrolment.name),
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_LIMIT_SECONDS * 1000),
    ]
    secret = grpc.ssl_channel_credentials(credentials.authority_pem, credentials.key_pem, credentials.certificate_pem)
    return grpc.aio.secure_channel(f"{address}:{enrolment.port}", secret, options=options)


def silent(host: Host, enrolment: Enrolment) -> TransportError:
    """Nobody answers at all: a host that is off says nothing, not even no."""
    message = f"{enrolment.address}:{enrolment.port} does not answer"
    return HostUnreachable(host.name, message, "is it up, and the port open in its firewall?")


def lost(host: Host, enrolment: Enrolment, details: str) -> TransportError:
    """What it means that a connection ended on which the host had answered: a restart of the agent looks the same."""
    message = f"the connection to {enrolment.address}:{enrolment.port} was lost: {details}"
    return HostUnreachable(host.name, message, "run the command again; it resumes")


def explain(host: Host, enrolment: Enrolment, details: str) -> TransportError:
    """What a failed connection means. gRPC's words are looked at only where they make a difference to what to do."""
    where = f"{enrolment.address}:{enrolment.port}"
    if "refused" in details:
        return NoAgent(host.name, f"nothing listens on {where}", f"fleet up {host.name} starts the agent, over SSH")
    if "Verification" in details or "CERTIFICATE" in details or "handshake" in details.lower():
        message = f"whoever answers on {where} does not have this host's certificate"
        return NotEnrolled(host.name, message, f"was it installed anew? fleet up {host.name} enrols it, over SSH")
    if "Socket closed" in details or "reset" in details:
        message = f"{where} ended the connection; it may not know this fleet's certificate any more"
        return NotEnrolled(host.name, message, f"fleet up {host.name} enrols it again, over SSH")
    return HostUnreachable(
        host.name, f"cannot connect to {where}: {details}", "is it up, and the port open in its firewall?"
    )


async def enrol(
    agent: AgentClient, keeper: IdentityKeeper, host: Host, machine_id: str, address: str, take_over: bool = False
) -> tuple[Enrolment, IdentityStatus]:
    """Gives the host a key and certificate, and remembers them; `agent` is reached over SSH or an older certificate.

    Raises a TransportError, NotEnrolled where the host's key is none that we sign.
    """
    before = keeper.enrolment(host.name)
    # The same name as long as it is the same machine: a renewal that is cut off leaves either certificate good.
    label = before.label if before is not None and before.machine_id == machine_id else new_label()
    wanted = Enrolment(
        host=host.name, way=tls_way(host), address=address, port=host.tls_port, machine_id=machine_id, label=label
    )
    key_id, public_key = await agent.new_identity_key()
    try:
        certificate, signed = keeper.sign_host(public_key, wanted)
    except ValueError as error:
        raise NotEnrolled(host.name, str(error), f"fleet agent upgrade {host.name}") from None
    status = await agent.install_identity(
        HostIdentity(
            key_id=key_id,
            certificate_pem=certificate.decode(),
            authority_pem=keeper.ensure().decode(),
            controller_name=CONTROLLER,
            bind_address=ALL_ADDRESSES,
            port=host.tls_port,
            replace=take_over,
        )
    )
    keeper.keep(signed)
    return signed, status


async def renew_if_due(agent: AgentClient, keeper: IdentityKeeper, host: Host, enrolment: Enrolment) -> Enrolment:
    """The enrolment, with a new key and certificate once half of its life is over.

    A failure costs nothing: the next contact tries.
    """
    if enrolment.half_spent(time.time()):
        with suppress(TransportError, UnusableAuthorityError):
            return (await enrol(agent, keeper, host, enrolment.machine_id, enrolment.address))[0]
    return enrolment
