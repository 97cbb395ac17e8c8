"""What `fleet stop` does."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from fleet_controller.cli.client import call, connected_controller, typed_command
from fleet_controller.cli.events import finish_events, follow_events
from fleet_controller.cli.failures import REFUSED, CommandFailure, UsageFailure
from fleet_controller.cli.messages import word_of
from fleet_controller.cli.output import confirm
from fleet_proto.v1 import controller_pb2, services_pb2

if TYPE_CHECKING:
    from fleet_proto.v1.controller_pb2_grpc import ControllerAsyncStub


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
        if options.model and not any(_has(host, options.model) for host in hosts):
            await _refuse_foreign(controller, options)
        if doomed and not confirm(f"Stop {len(doomed)}?", options.yes):
            raise typer.Exit(0)
        finished = await follow_events(controller.StopServices(request), quiet=options.as_json)
    if options.model:
        demand_deployed(options.model, hosts)
    finish_events(finished, options.as_json)


def _has(host: controller_pb2.HostServices, model: str) -> bool:
    return any(service.spec.name == model for service in host.services)


async def _refuse_foreign(controller: "ControllerAsyncStub", options: StopOptions) -> None:
    """Raises CommandFailure (refused) where the name is that of a server which others started."""
    query = controller_pb2.ListServicesQuery(pattern=options.pattern, find_foreign=True)
    async for host in controller.ListServices(query):
        for server in host.foreign:
            if options.model in server.models or options.model == str(server.port):
                who = ", ".join(part for part in (server.user, server.command, f"port {server.port}") if part)
                raise CommandFailure(
                    f"{host.host}: {options.model} was not started by fleet ({who}), which stops only its own",
                    "ask whoever started it",
                    REFUSED,
                )


def demand_deployed(model: str, hosts: Sequence[controller_pb2.HostServices]) -> None:
    """Raises UsageFailure where every host answered and none has the model."""
    known = {service.spec.name for host in hosts for service in host.services}
    if model not in known and not any(host.HasField("problem") for host in hosts):
        there_is = f"deployed: {', '.join(sorted(known))}" if known else "no model is deployed on these hosts"
        raise UsageFailure(f"{model} is not deployed; {there_is}")
