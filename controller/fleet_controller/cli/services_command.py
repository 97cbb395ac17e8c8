"""What `fleet ps` and `fleet stop` do."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import typer

from fleet_controller.cli.client import call, connected_controller, typed_command
from fleet_controller.cli.events import finish_events, follow_events
from fleet_controller.cli.failures import SOME_HOST_FAILED, UsageFailure, report
from fleet_controller.cli.messages import plain, word_of
from fleet_controller.cli.output import GREEN, RED, YELLOW, confirm, duration, gibibytes, print_json, print_table
from fleet_controller.domain.addresses import base_url
from fleet_proto.v1 import controller_pb2, services_pb2

PS_COLUMNS = ("HOST", "MODEL", "STATE", "BACKEND", "QUANT", "CONTEXT", "ENDPOINT", "SINCE", "MEMORY", "RESTARTS")
STATE_STYLES = {"ready": GREEN, "starting": YELLOW, "backing-off": YELLOW, "unhealthy": RED, "failed": RED}


def run_ps(pattern: str, as_json: bool) -> None:
    """Print the services; exit code 1 where a host did not answer."""
    hosts = call(_fetch_services(pattern))
    if as_json:
        print_json({"hosts": [plain(host) for host in hosts]})
    else:
        rows = [_row(host.host, service) for host in hosts for service in host.services]
        if rows:
            print_table(PS_COLUMNS, rows, STATE_STYLES)
            if sys.stderr.isatty() and any("127.0.0.1" in row[6] for row in rows):
                print(
                    "127.0.0.1 is each host's own; from elsewhere: ssh -N -L PORT:127.0.0.1:PORT HOST", file=sys.stderr
                )
        elif any(not host.HasField("problem") for host in hosts):  # of the others nothing is known
            print("no model is deployed on these hosts", file=sys.stderr)
        for host in hosts:
            for service in host.services:
                if service.HasField("problem"):
                    report(f"{host.host}: {service.spec.name}: {service.problem.message}", service.problem.remedy)
            if host.HasField("problem"):
                report(f"{host.host}: {host.problem.message}", host.problem.remedy)
    if any(host.HasField("problem") for host in hosts):
        raise typer.Exit(SOME_HOST_FAILED)


async def _fetch_services(pattern: str) -> list[controller_pb2.HostServices]:
    async with connected_controller() as controller:
        found = [host async for host in controller.ListServices(controller_pb2.ListServicesQuery(pattern=pattern))]
    return sorted(found, key=lambda host: host.host)


def _row(host: str, service: services_pb2.ServiceStatus) -> tuple[str, ...]:
    spec = service.spec
    runs = service.HasField("process")
    memory = service.gpu_memory_bytes if service.HasField("gpu_memory_bytes") else service.resident_bytes
    known = service.HasField("gpu_memory_bytes") or service.HasField("resident_bytes")
    since = duration(time.time() - service.started_unix_ms / 1000) if service.HasField("started_unix_ms") else "-"
    return (
        host,
        spec.name,
        word_of(service, "state"),
        f"{spec.backend} {spec.backend_version}".strip(),
        spec.quantization or "-",
        f"{spec.context_length:,}" if spec.context_length else "-",
        base_url(spec.bind_address, spec.port) if runs else "-",
        since if runs else "-",
        gibibytes(memory) if runs and known else "-",
        str(service.restarts),
    )


@dataclass(frozen=True)
class StopOptions:
    model: str
    pattern: str
    everything: bool
    remove: bool
    yes: bool
    as_json: bool


def run_stop(options: StopOptions) -> None:
    """Show what would stop, ask, stop it."""
    if bool(options.model) == options.everything:
        raise UsageFailure("name a model, or give --all", "fleet ps shows what runs")
    call(_stop(options), when_interrupted=typed_command())


async def _stop(options: StopOptions) -> None:
    selection = controller_pb2.ListServicesQuery(pattern=options.pattern)
    request = controller_pb2.StopServicesRequest(
        pattern=options.pattern, model=options.model, all=options.everything, remove=options.remove
    )
    async with connected_controller() as controller:
        hosts = [host async for host in controller.ListServices(selection)]
        doomed = [
            (host.host, service)
            for host in sorted(hosts, key=lambda host: host.host)
            for service in host.services
            if (options.everything or service.spec.name == options.model)
            and (options.remove or service.desired == services_pb2.DESIRED_STATE_RUNNING)
        ]
        for host, service in doomed:
            verb = "stop and forget" if options.remove else "stop"
            print(f"{host}: {verb} {service.spec.name} ({word_of(service, 'state')})", file=sys.stderr)
        if doomed and not confirm(f"Stop {len(doomed)}?", options.yes):
            raise typer.Exit(0)
        finished = await follow_events(controller.StopServices(request), quiet=options.as_json)
    if options.model:
        demand_deployed(options.model, hosts)
    finish_events(finished, options.as_json)


def demand_deployed(model: str, hosts: Sequence[controller_pb2.HostServices]) -> None:
    """Raises UsageFailure where every host answered and none has the model."""
    known = {service.spec.name for host in hosts for service in host.services}
    if model not in known and not any(host.HasField("problem") for host in hosts):
        there_is = f"deployed: {', '.join(sorted(known))}" if known else "no model is deployed on these hosts"
        raise UsageFailure(f"{model} is not deployed; {there_is}")
