"""What `fleet up` does: show, ask, bring up; unknown host keys are put to the user one by one."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from fleet_controller.cli.client import call, connected_controller, typed_command
from fleet_controller.cli.events import finish_events, follow_events
from fleet_controller.cli.failures import UsageFailure
from fleet_controller.cli.host_keys import answer_host_keys
from fleet_controller.cli.output import confirm, print_json, print_table
from fleet_controller.cli.rollout_command import tell_rollouts_under_way
from fleet_controller.service.protocol import software_version
from fleet_inventory.host_file import Transport
from fleet_proto.v1 import controller_pb2

GOES_ON = "it goes on meanwhile, and so do installs, pulls and models"
PLAN_COLUMNS = ("HOST", "ADDRESS", "TRANSPORT", "WHAT WOULD HAPPEN")


@dataclass(frozen=True)
class UpOptions:
    pattern: str
    wheels: str
    fetch_wheels: bool
    transport: str
    force: bool
    manager: str
    yes: bool
    dry_run: bool
    as_json: bool


def run_up(options: UpOptions) -> None:
    """Exit code 1 where a host could not be brought up or its key was not accepted."""
    if options.wheels and not Path(options.wheels).is_dir():
        raise UsageFailure(f"{options.wheels} is not a folder", "name the folder with the wheels")
    known = [kind.value for kind in Transport]
    if options.transport and options.transport not in known:
        raise UsageFailure(f"there is no transport {options.transport}", f"one of: {', '.join(known)}")
    call(_up(options), when_interrupted=typed_command())


async def _up(options: UpOptions) -> None:
    async with connected_controller() as controller:
        looked = controller.GetHosts(controller_pb2.GetHostsRequest(pattern=options.pattern, refresh=True))
        reports = sorted([report async for report in looked], key=lambda report: report.host)
        plan = [_row(report, options) for report in reports]
        if options.dry_run and options.as_json:
            print_json(
                {"hosts": [dict(zip(("host", "address", "transport", "action"), row, strict=True)) for row in plan]}
            )
            return
        print_table(PLAN_COLUMNS, plan, stream=sys.stderr if options.as_json else sys.stdout)
        await tell_rollouts_under_way(controller, [report.host for report in reports], GOES_ON)
        if options.dry_run:
            return
        if not confirm(f"Bring up {len(plan)} host{'' if len(plan) == 1 else 's'}?", options.yes):
            raise typer.Exit(0)
        finished = await _bring_up(controller, options)
    if any(report.transport != (options.transport or report.transport) for report in reports):
        said = f"--transport {options.transport} counts for this command only"
        print(f"{said}; for all others write transport: {options.transport} into hosts.yaml", file=sys.stderr)
    finish_events(finished, options.as_json)


async def _bring_up(controller: Any, options: UpOptions) -> list[controller_pb2.HostEvent]:
    """Until no host has a question left: a jump host's key may be asked about before the host's own."""
    ended: dict[str, controller_pb2.HostEvent] = {}
    pattern = options.pattern
    while pattern:
        request = controller_pb2.UpRequest(
            pattern=pattern,
            transport=options.transport,
            wheel_folder=str(Path(options.wheels).absolute()) if options.wheels else "",
            force=options.force,
            manager=options.manager,
            fetch_wheels_for="hosts" if options.fetch_wheels else "",
        )
        finished = await follow_events(controller.Up(request), quiet=options.as_json)
        ended.update({event.host: event for event in finished})
        pattern = ",".join(await answer_host_keys(controller, finished))
    return [ended[host] for host in sorted(ended)]


def _row(report: controller_pb2.HostReport, options: UpOptions) -> tuple[str, str, str, str]:
    transport = options.transport or report.transport
    intent = _intent(report, options)
    if transport == "tls" and report.transport != "tls":
        intent += ", and give it a certificate for transport tls"
    return report.host, report.address, transport, intent


def _intent(report: controller_pb2.HostReport, options: UpOptions) -> str:
    ours = software_version()
    if report.connection == controller_pb2.HOST_CONNECTION_UP:
        if options.force:
            return f"install agent {ours} again; models go on"
        if report.agent_version == ours:
            return f"check agent {ours}, which runs already"
        return f"upgrade agent {report.agent_version} to {ours}; models go on"
    if report.connection == controller_pb2.HOST_CONNECTION_NO_AGENT:
        return f"install and start agent {ours} as this login's user, without root"
    if report.problem.code == "not-enrolled":
        return f"check agent {ours} over SSH, and give it a certificate for transport tls"
    if report.problem.code == "host-key-unknown":
        return "ask you about its host key, then install and start the agent"
    return f"try: {report.problem.message}"
