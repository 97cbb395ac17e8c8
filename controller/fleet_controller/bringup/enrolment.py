"""The last part of `fleet up`: a host gets its identity for transport `tls`, or loses one that is not wanted."""

from __future__ import annotations

import hashlib

from fleet_controller.domain.agents import AgentIdentity
from fleet_controller.pki.keeper import UnusableAuthorityError
from fleet_controller.transport import tls
from fleet_controller.transport.client import AgentClient
from fleet_controller.transport.errors import AgentRefused, BringUpFailed, NotEnrolled, ProtocolSkew, TransportError
from fleet_controller.transport.pool import AgentPool
from fleet_inventory.hosts import Host, Transport


async def settle_identity(host: Host, pool: AgentPool, identity: AgentIdentity, take_over: bool) -> tuple[str, bool]:
    """What to tell of the host's identity ("" = nothing), and whether something was changed.

    The pool's channel to the host leads through SSH (or the local socket). Raises a TransportError.
    """
    if host.transport is not Transport.TLS:
        return await _withdraw(host, pool)
    from fleet_controller.transport.ssh_login import dialled_name  # loads asyncssh

    address = await dialled_name(host)
    try:
        async with pool.client(host) as agent:
            enrolment, status = await tls.enrol(agent, pool.identities, host, identity.machine_id, address, take_over)
    except UnusableAuthorityError as error:
        raise BringUpFailed(host.name, str(error)) from None
    if not status.listening:
        remedy = f"give it another tls_port in hosts.yaml, then: fleet up {host.name}"
        raise BringUpFailed(host.name, f"the agent runs, but {status.problem}", remedy, "tls-port")
    await pool.drop(host)
    try:
        await pool.identity(host)
    except TransportError as error:
        message = f"the agent runs and has its certificate, but not over TLS: {error.problem.message}"
        remedy = f"open port {enrolment.port} between here and there, or say transport: ssh in hosts.yaml"
        if isinstance(
            error, NotEnrolled
        ):  # it answers, and one of the two does not believe a certificate made just now
            remedy = "compare the clocks of both machines (date): certificates count for a time only"
        raise BringUpFailed(host.name, message, remedy, "tls-unreachable") from None
    return f"its certificate counts for {_days(enrolment.not_after - enrolment.not_before)} days", True


def _days(seconds: float) -> int:
    return int(seconds // 86400)


async def _withdraw(host: Host, pool: AgentPool) -> tuple[str, bool]:
    """Closes the port of a host that is controlled through SSH again; a colleague's enrolment is not ours to end."""
    if pool.identities.enrolment(host.name) is None:
        return "", False
    async with pool.client(host) as agent:
        if not await _is_ours(agent, pool):
            return "", False
        await agent.remove_identity()
    pool.identities.forget(host.name)
    return "its port for transport tls is closed", True


async def _is_ours(agent: AgentClient, pool: AgentPool) -> bool:
    try:
        status = await agent.get_identity()
    except (AgentRefused, ProtocolSkew):  # an older agent
        return False
    return status.enrolled and status.authority_sha256 == hashlib.sha256(pool.identities.ensure()).hexdigest()
