"""Facts of many hosts, as they answer; or the last known ones, with their age."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncGenerator

from fleet_controller.domain.base import Problem
from fleet_controller.fanout import as_they_finish
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.problems import problem_of
from fleet_controller.operations.reports import HostConnection, HostReport
from fleet_controller.state import KnownHost
from fleet_controller.transport.errors import (
    HostKeyMismatch,
    HostKeyUnknown,
    HostUnreachable,
    LoginRefused,
    NoAgent,
    NotEnrolled,
    ProtocolSkew,
    TransportError,
)
from fleet_inventory.hosts import Host

logger = logging.getLogger(__name__)

CONNECTIONS: tuple[tuple[type[TransportError], HostConnection], ...] = (
    (NoAgent, HostConnection.NO_AGENT),
    (HostUnreachable, HostConnection.UNREACHABLE),
    (HostKeyUnknown, HostConnection.REFUSED),
    (HostKeyMismatch, HostConnection.REFUSED),
    (LoginRefused, HostConnection.REFUSED),
    (NotEnrolled, HostConnection.REFUSED),
    (ProtocolSkew, HostConnection.REFUSED),
    (TransportError, HostConnection.UP),  # the agent itself answered with a problem
)


async def report_hosts(context: FleetContext, pattern: str, refresh: bool) -> AsyncGenerator[HostReport]:
    """A report per host of the pattern, in the order of the answers. A host that is down is a report, too."""
    hosts = context.select(pattern)
    if not refresh:
        for report in _last_known(context, hosts):
            yield report
        return
    answered = []
    async for report in as_they_finish(hosts, lambda host: live_report(context, host)):
        yield report
        if report.facts is not None:
            answered.append(report)
    try:
        context.database.save_hosts(
            KnownHost(report.host, report.model_dump(mode="json", exclude_none=True), _now_ms()) for report in answered
        )
    except (OSError, sqlite3.Error) as error:  # a full disk here is no reason to withhold what the hosts said
        logger.warning("the hosts' facts were not kept: %s", error)


async def live_report(context: FleetContext, host: Host) -> HostReport:
    """Facts and services of one host, asked for side by side. Raises nothing that a host can cause."""
    started = time.monotonic()
    base = HostReport(host=host.name, groups=host.groups, address=host.address, transport=str(host.transport))
    try:
        async with context.pool.client(host) as agent:
            facts, services = await asyncio.gather(agent.facts(), agent.list_services())
        identity = await context.pool.identity(host)
        update = {
            "connection": HostConnection.UP,
            "facts": facts,
            "services": services,
            "agent_version": identity.software_version,
        }
    except TransportError as error:
        connection = next(state for kind, state in CONNECTIONS if isinstance(error, kind))
        update = {"connection": connection, "problem": error.problem}
    except Exception as error:
        update = {"connection": HostConnection.UNREACHABLE, "problem": problem_of(error)}
    return base.model_copy(update=update | {"seconds": time.monotonic() - started})


def _last_known(context: FleetContext, hosts: tuple[Host, ...]) -> list[HostReport]:
    known = context.database.known_hosts()
    reports = []
    for host in hosts:
        found = known.get(host.name)
        if found is None:
            never = Problem(
                code="never-seen", message="no facts of this host are known yet", remedy=f"run: fleet hosts {host.name}"
            )
            reports.append(HostReport(host=host.name, groups=host.groups, address=host.address, problem=never))
        else:
            reports.append(HostReport.model_validate(found.report))
    return reports


def _now_ms() -> int:
    return int(time.time() * 1000)
