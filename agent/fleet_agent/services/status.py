"""What is told of a service, from its record and the processes that it has now."""

from collections.abc import Sequence

from fleet_agent.process import ProcessIdentity, is_alive, resident_bytes, tree_members
from fleet_agent.services.admission import Devices
from fleet_agent.services.journal import ServiceRecord, Successor
from fleet_agent.services.model import ServiceStatus, SuccessorStatus


def status_of(record: ServiceRecord, members: Sequence[ProcessIdentity], devices: Devices) -> ServiceStatus:
    """`members` are the running processes of the service's own server."""
    condition = record.condition
    return ServiceStatus(
        spec=record.spec,
        state=condition.state,
        desired=record.desired,
        spec_digest=record.spec.digest(),
        process=record.process,
        started_unix_ms=_milliseconds(condition.started_at if record.process else None),
        ready_unix_ms=_milliseconds(condition.ready_at),
        restarts=condition.restarts,
        problem=record.problem,
        resident_bytes=resident_bytes(members),
        gpu_memory_bytes=devices.used_bytes([one.pid for one in members]) if members else None,
        next_start_unix_ms=_milliseconds(condition.next_start_at),
        last_exit_code=record.last_exit_code,
        argv=record.argv,
        successor=_successor(record.successor, devices) if record.successor is not None else None,
    )


def _successor(successor: Successor, devices: Devices) -> SuccessorStatus:
    server = successor.server
    process = server.process
    members = tree_members(process) if process is not None and is_alive(process) else ()
    return SuccessorStatus(
        spec=successor.spec,
        state=server.condition.state,
        port=server.spec.port,
        process=process,
        problem=server.problem,
        resident_bytes=resident_bytes(members),
        gpu_memory_bytes=devices.used_bytes([one.pid for one in members]) if members else None,
    )


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)
