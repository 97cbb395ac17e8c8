"""How forwards are shown: one row each, one JSON object each."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from fleet_controller.cli.output import GREEN, RED, YELLOW, duration, print_table
from fleet_controller.domain.services import ServiceStatus
from fleet_controller.endpoints.addresses import leads_to
from fleet_controller.forwarding.record import Forward, ForwardState
from fleet_controller.operations.reports import HostServices

FORWARD_COLUMNS = ("FORWARD", "ADDRESS HERE", "LEADS TO", "STATE", "SINCE", "RECONNECTS", "NOTE")
FORWARD_STYLES = {"up": GREEN, "connecting": YELLOW, "waiting": YELLOW, "ended": RED}


def print_forwards(forwards: Iterable[Forward], hosts: Sequence[HostServices] | None = None) -> None:
    """A table; with the hosts' services it says which forwards no longer lead to theirs."""
    rows = [_row(forward, note_of(forward, hosts)) for forward in forwards]
    if rows:
        print_table(FORWARD_COLUMNS, rows, FORWARD_STYLES)


def forward_document(forward: Forward, hosts: Sequence[HostServices] | None = None) -> dict[str, Any]:
    """What `--json` tells of a forward."""
    return {
        "model": forward.model,
        "host": forward.host,
        "base_url": forward.base_url,
        "local_port": forward.local_port,
        "remote_address": forward.remote_address,
        "remote_port": forward.remote_port,
        "state": forward.present_state.value,
        "since_unix_ms": forward.since_unix_ms,
        "reconnects": forward.reconnects,
        "cause": forward.cause or None,
        "next_try_unix_ms": forward.next_try_unix_ms,
        "pid": forward.supervisor.pid if forward.supervisor and forward.is_kept_up else None,
        "machine": forward.machine_name,
        "note": note_of(forward, hosts) or None,
    }


def note_of(forward: Forward, hosts: Sequence[HostServices] | None = None) -> str:
    """What is wrong with a forward, and what to do; "" where nothing is."""
    again = f"fleet forward {forward.model} --hosts {forward.host}"
    if forward.is_elsewhere:
        return f"it belongs to {forward.machine_name}"
    moved = _moved(forward, hosts)
    if moved:
        return moved
    if forward.present_state is ForwardState.ENDED:
        return f"its process is gone (a reboot?): {again}"
    if forward.state is ForwardState.WAITING:
        pause = max(0.0, (forward.next_try_unix_ms or 0) / 1000 - time.time())
        return f"{forward.message}; next try in {duration(pause)}"
    return forward.message


def _moved(forward: Forward, hosts: Sequence[HostServices] | None) -> str:
    """Whether the service is still where the forward leads; nothing is known of a host that did not answer."""
    host = next((one for one in hosts or () if one.host == forward.host and one.reachable), None)
    if host is None:
        return ""
    stop = f"fleet forward --stop {forward.model}"
    service = service_of(host, forward.model)
    if service is None:
        return f"{forward.host} no longer has this model: {stop}"
    if service.process is None:
        return f"the model is stopped there: {stop}"
    if not leads_to(forward, service.spec):
        again = f"fleet forward {forward.model} --hosts {forward.host}"
        return f"the model moved to port {service.spec.port}: {again}"
    return ""


def service_of(host: HostServices, model: str) -> ServiceStatus | None:
    return next((status for status in host.services if status.spec.name == model), None)


def _row(forward: Forward, note: str) -> tuple[str, ...]:
    return (
        forward.name,
        forward.base_url,
        f"{forward.host} port {forward.remote_port}",
        forward.present_state.value,
        duration(time.time() - forward.since_unix_ms / 1000),
        str(forward.reconnects),
        note or "-",
    )
