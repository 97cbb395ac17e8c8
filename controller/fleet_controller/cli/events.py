"""Following a stream of HostEvents to its end, and what the command then prints and returns."""

import json
from collections.abc import AsyncIterable
from typing import Any

import typer

from fleet_controller.cli.failures import REFUSAL_CODES, REFUSED, SOME_HOST_FAILED, report
from fleet_controller.cli.messages import plain
from fleet_controller.cli.output import print_json
from fleet_controller.cli.progress import ProgressDisplay, failed
from fleet_proto.v1 import controller_pb2


async def follow_events(stream: AsyncIterable[Any], quiet: bool = False) -> list[controller_pb2.HostEvent]:
    """Show progress on stderr; returns each host's last event, by host name."""
    with ProgressDisplay(quiet) as display:
        async for event in stream:
            display.show(event)
        return [display.finished[host] for host in sorted(display.finished)]


def outcome(event: controller_pb2.HostEvent) -> dict[str, Any]:
    """One host's end for `--json`."""
    return {
        "host": event.host,
        "ok": not failed(event),
        "changed": event.changed,
        "message": event.message,
        "problem": plain(event.problem) if event.HasField("problem") else None,
        "result": json.loads(event.json) if event.json else None,
    }


def finish_events(finished: list[controller_pb2.HostEvent], as_json: bool) -> None:
    """Print how each host ended, and leave with exit code 1 (3: only refusals) where one failed."""
    if as_json:
        print_json({"hosts": [outcome(event) for event in finished]})
    else:
        for event in finished:
            if event.HasField("host_key"):  # what to do about it was said when it was asked about
                report(f"{event.host}: nothing was done: its host key is not accepted")
            elif event.HasField("problem"):
                report(f"{event.host}: {event.problem.message}", event.problem.remedy, event.problem.tail)
            else:
                print(f"{event.host}: {event.message}")
    leave_with(finished)


def leave_with(finished: list[controller_pb2.HostEvent]) -> None:
    """Exit code 0 returns; 1 where a host failed, 3 where all that failed were refused."""
    bad = [event for event in finished if failed(event)]
    if bad:
        refused = all(event.problem.code in REFUSAL_CODES for event in bad)
        raise typer.Exit(REFUSED if refused else SOME_HOST_FAILED)
