"""What `fleet agent ...` does."""

import sys

import typer

from fleet_controller.cli.client import call, connected_controller, typed_command
from fleet_controller.cli.events import finish_events, follow_events
from fleet_controller.cli.host_keys import answer_host_keys
from fleet_controller.cli.output import confirm
from fleet_controller.cli.rollout_command import tell_rollouts_under_way
from fleet_controller.cli.up_command import GOES_ON
from fleet_controller.service.protocol import software_version
from fleet_proto.v1 import controller_pb2

ACTIONS = {
    "status": controller_pb2.AGENT_ACTION_STATUS,
    "upgrade": controller_pb2.AGENT_ACTION_UPGRADE,
    "restart": controller_pb2.AGENT_ACTION_RESTART,
    "remove": controller_pb2.AGENT_ACTION_REMOVE,
    "revoke": controller_pb2.AGENT_ACTION_REVOKE,
}


def run_agent_action(action: str, pattern: str, yes: bool, as_json: bool, purge: bool = False) -> None:
    """Exit code 1 where an agent could not be reached or changed."""
    interrupted = "" if action == "status" else typed_command()
    call(_manage(action, pattern, yes, as_json, purge), when_interrupted=interrupted)


async def _manage(action: str, pattern: str, yes: bool, as_json: bool, purge: bool) -> None:
    request = controller_pb2.ManageAgentsRequest(pattern=pattern, action=ACTIONS[action], purge=purge)
    async with connected_controller() as controller:
        if action != "status":
            # Nobody is asked before a revocation: the host may be in the wrong hands.
            refresh = action != "revoke"
            looked = controller.GetHosts(controller_pb2.GetHostsRequest(pattern=pattern, refresh=refresh))
            reports = sorted([report async for report in looked], key=lambda report: report.host)
            for report in reports:
                print(f"{report.host}: {_intent(action, report, purge)}", file=sys.stderr)
            consequence = GOES_ON if action in ("upgrade", "restart") else "it will fail there"
            await tell_rollouts_under_way(controller, [report.host for report in reports], consequence)
            if not confirm(f"{action.capitalize()} these agents?", yes):
                raise typer.Exit(0)
        finished = await follow_events(controller.ManageAgents(request), quiet=as_json or action == "status")
        await answer_host_keys(controller, finished)
    finish_events(finished, as_json)


def _intent(action: str, report: controller_pb2.HostReport, purge: bool) -> str:
    models = ", ".join(service.spec.name for service in report.services if service.HasField("process"))
    if action == "upgrade":
        theirs, ours = report.agent_version or "(not answering)", software_version()
        change = f"bring agent {ours} to this fleet's build" if theirs == ours else f"upgrade agent {theirs} to {ours}"
        return f"{change}; models go on"
    if action == "restart":
        return "restart the agent; models and jobs go on"
    if action == "revoke":
        return "let its certificate for transport tls count no more"
    ended = f"; this ends {models}" if models else ""
    state = "with its engines, journal and jobs" if purge else "and leave engines, journal and jobs"
    return f"remove the agent {state}; jobs under way are cancelled, model files stay{ended}"
