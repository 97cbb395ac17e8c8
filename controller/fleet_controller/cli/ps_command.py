"""What `fleet ps` does."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import typer

from fleet_controller.cli.client import call
from fleet_controller.cli.failures import SOME_HOST_FAILED, report
from fleet_controller.cli.forward_view import forward_document, note_of, print_forwards
from fleet_controller.cli.listing import fetch_messages
from fleet_controller.cli.messages import plain, word_of
from fleet_controller.cli.output import DIM, GREEN, RED, YELLOW, duration, gibibytes, print_json, print_table
from fleet_controller.endpoints.addresses import forward_of, ways_to
from fleet_controller.forwarding.record import Forward, list_forwards
from fleet_controller.operations.reports import HostServices
from fleet_controller.settings import Settings
from fleet_controller.wire import from_wire
from fleet_proto.v1 import agent_pb2, controller_pb2, services_pb2

COLUMNS = (
    "HOST", "MODEL", "STATE", "BACKEND", "VERSION", "QUANT", "CONTEXT", "PORT", "MEMORY", "TOK/S", "UPTIME",
    "RESTARTS", "ENDPOINT",
)  # fmt: skip
# Of an endpoint that only its own host can use.
OWN_LOOPBACK = " only"
STYLES = {"ready": GREEN, "starting": YELLOW, "backing-off": YELLOW, "unhealthy": RED, "failed": RED, "foreign": DIM}


def run_ps(pattern: str, as_json: bool, quick: bool) -> None:
    """Print the services, the servers of others and the forwards; exit code 1 where a host did not answer."""
    messages = call(fetch_messages(pattern, measure_rates=not quick, find_foreign=not quick))
    hosts = [from_wire(HostServices, message) for message in messages]
    names = {host.host for host in hosts}
    forwards = [one for one in list_forwards(Settings.from_environment()) if one.host in names or pattern == "all"]
    if as_json:
        documents = [_document(message, host, forwards) for message, host in zip(messages, hosts, strict=True)]
        print_json({"hosts": documents, "forwards": [forward_document(one, hosts) for one in forwards]})
    else:
        _print(messages, hosts, forwards)
        _report(messages)
    if any(host.problem is not None for host in hosts):
        raise typer.Exit(SOME_HOST_FAILED)


def _print(
    messages: Sequence[controller_pb2.HostServices], hosts: Sequence[HostServices], forwards: Sequence[Forward]
) -> None:
    rows = []
    for message, host in zip(messages, hosts, strict=True):
        for service in message.services:
            rows.append(_row(host, service, forwards))
            rows += _successor_rows(host.host, service)
        rows += [_foreign_row(host.host, server) for server in message.foreign]
    if rows:
        print_table(COLUMNS, rows, STYLES)
    elif any(host.problem is None for host in hosts):  # of the others nothing is known
        print("no model is deployed on these hosts", file=sys.stderr)
    if forwards:
        print()
        print_forwards(forwards, hosts)
    if sys.stderr.isatty() and any(row[-1].endswith(OWN_LOOPBACK) for row in rows):
        print("to use a model of another host on this machine: fleet forward MODEL", file=sys.stderr)


def _report(messages: Sequence[controller_pb2.HostServices]) -> None:
    for host in messages:
        for service in host.services:
            if service.HasField("problem"):
                report(f"{host.host}: {service.spec.name}: {service.problem.message}", service.problem.remedy)
            successor = service.successor
            if service.HasField("successor") and successor.HasField("problem"):
                remedy = successor.problem.remedy or f"see: fleet logs {service.spec.name}"
                report(f"{host.host}: {service.spec.name}'s successor: {successor.problem.message}", remedy)
        if host.HasField("problem"):
            report(f"{host.host}: {host.problem.message}", host.problem.remedy)


def _row(host: HostServices, service: services_pb2.ServiceStatus, forwards: Sequence[Forward]) -> tuple[str, ...]:
    spec = service.spec
    runs = service.HasField("process")
    memory = service.gpu_memory_bytes if service.HasField("gpu_memory_bytes") else service.resident_bytes
    known = service.HasField("gpu_memory_bytes") or service.HasField("resident_bytes")
    uptime = duration(time.time() - service.started_unix_ms / 1000) if service.HasField("started_unix_ms") else "-"
    return (
        host.host,
        spec.name,
        word_of(service, "state"),
        spec.backend or "-",
        spec.backend_version or "-",
        spec.quantization or "-",
        f"{spec.context_length:,}" if spec.context_length else "-",
        str(spec.port) if spec.port else "-",
        gibibytes(memory) if runs and known else "-",
        f"{service.tokens_per_second:.1f}" if runs and service.HasField("tokens_per_second") else "-",
        uptime if runs else "-",
        str(service.restarts),
        _endpoint(host, spec.name, forwards) if runs and spec.port else "-",
    )


def _successor_rows(host: str, service: services_pb2.ServiceStatus) -> list[tuple[str, ...]]:
    """Under a service, the server that is started beside it to take its place."""
    successor, spec = service.successor, service.successor.spec
    if not service.HasField("successor"):
        return []
    memory = successor.gpu_memory_bytes if successor.HasField("gpu_memory_bytes") else successor.resident_bytes
    place = f"then {spec.port}" if spec.port != successor.port else ""
    return [
        (
            host, "  its successor", word_of(successor, "state"), spec.backend or "-", spec.backend_version or "-",
            spec.quantization or "-", f"{spec.context_length:,}" if spec.context_length else "-", str(successor.port),
            gibibytes(memory) if successor.HasField("process") else "-", "-", "-", "-", place or "-",
        )
    ]  # fmt: skip


def _endpoint(host: HostServices, model: str, forwards: Sequence[Forward]) -> str:
    """The address for a client on this machine; where there is none, whose loopback it is."""
    status = next(one for one in host.services if one.spec.name == model)
    forward = forward_of(forwards, model, host.host)
    ways = ways_to(host, status.spec, forward)
    if not ways:
        stale = forward is not None and note_of(forward, [host])
        address = f"{host.host}'s {status.spec.bind_address}{OWN_LOOPBACK}"
        return f"{address} (the forward needs a look)" if stale else address
    way = ways[0]
    return f"{way.base_url} ({way.via.value})" if way.via.value != "local" else way.base_url


def _foreign_row(host: str, server: agent_pb2.ForeignServer) -> tuple[str, ...]:
    """A server that fleet did not start: who runs it, as far as the host tells."""
    models = list(server.models)
    model = f"{models[0]} (+{len(models) - 1})" if len(models) > 1 else models[0] if models else "-"
    pid = f"pid {server.pid}" if server.HasField("pid") else ""
    owner = ", ".join(part for part in (server.user, server.command, pid, "asks for a key" * server.needs_key) if part)
    return (
        host, model, "foreign", server.backend or "?", server.version or "-", "-", "-", str(server.port), "-", "-", "-",
        "-", f"not fleet's: {owner}" if owner else "not fleet's",
    )  # fmt: skip


def _document(message: controller_pb2.HostServices, host: HostServices, forwards: Sequence[Forward]) -> dict[str, Any]:
    """All fields of the message; each service also with its addresses from here and its forward."""
    document = plain(message)
    for shown, status in zip(document["services"], host.services, strict=True):
        forward = forward_of(forwards, status.spec.name, host.host)
        ways = ways_to(host, status.spec, forward) if status.process is not None else ()
        shown["addresses"] = [{"base_url": way.base_url, "via": way.via.value} for way in ways]
        shown["forward"] = forward_document(forward, [host]) if forward is not None else None
    return document
