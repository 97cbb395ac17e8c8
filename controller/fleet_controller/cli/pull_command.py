"""What `fleet pull` and `fleet import` do: plan, show, ask, and follow the chain."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import typer

from fleet_controller.cli.client import call, connected_controller, typed_command
from fleet_controller.cli.events import leave_with, outcome
from fleet_controller.cli.failures import REFUSED, SOME_HOST_FAILED, UsageFailure, report
from fleet_controller.cli.messages import plain
from fleet_controller.cli.output import GREEN, RED, confirm, gibibytes, print_json, print_table
from fleet_controller.cli.pull_display import ALL, PullDisplay
from fleet_proto.v1 import controller_pb2

COLUMNS = ("HOST", "PART", "TO FETCH", "FREE", "MODEL")
STYLES = {"has it": GREEN, "refuse": RED, "fail": RED}
GOES_ON = "goes on with a pull that was begun: "
_HOST_FOLDER = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*):(/.*)\Z")


@dataclass(frozen=True)
class PullOptions:
    pattern: str
    model: str = ""
    quantization: str = ""
    repository: str = ""
    backend: str = ""
    source: str = ""
    folder: str = ""
    rate: str = ""
    stop: bool = False
    dry_run: bool = False
    yes: bool = False
    as_json: bool = False


def run_pull(options: PullOptions) -> None:
    """Exit code 1 where a host failed, 3 where one was refused, 0 where all hosts have the files."""
    request = request_of(options)
    call(_pull(options, request), when_interrupted=typed_command())


def request_of(options: PullOptions) -> controller_pb2.PullRequest:
    """Raises UsageFailure for what cannot be meant."""
    if not options.folder and not options.model and not options.repository:
        raise UsageFailure("name a model, or give --repo owner/name", "fleet models lists the catalog")
    folder, folder_host = options.folder, ""
    on_host = _HOST_FOLDER.match(folder)
    if on_host and not Path(folder).exists():
        folder_host, folder = on_host[1], on_host[2]
    elif folder:
        folder = str(Path(folder).expanduser().absolute())
    return controller_pb2.PullRequest(
        model=options.model,
        pattern=options.pattern,
        quantization=options.quantization,
        repository=options.repository,
        backend=options.backend,
        source=options.source,
        rate_bytes_per_second=_rate(options.rate),
        folder=folder,
        folder_host=folder_host,
        stop=options.stop,
    )


def _rate(text: str) -> int:
    from fleet_inventory.sizes import parse_bytes

    if not text:
        return 0
    try:
        return parse_bytes(text.removesuffix("/s"))
    except ValueError as error:
        raise UsageFailure(f"--rate {error}", "as in --rate 50MB") from None


async def _pull(options: PullOptions, request: controller_pb2.PullRequest) -> None:
    finished: list[controller_pb2.HostEvent] = []
    async with connected_controller() as controller:
        plan: controller_pb2.PullPlan = await controller.PlanPull(request)
        shown = sys.stderr if options.as_json else sys.stdout
        if not (options.dry_run and options.as_json):
            print_pull_plan(plan, shown, "runs now: " if options.stop else GOES_ON)
        fetching = [host.host for pull in plan.pulls for host in pull.hosts if host.part == "fetch"]
        if options.stop:
            finished = await _stop(controller, plan, options)
        elif fetching and not options.dry_run:
            if not confirm(f"Pull to {', '.join(fetching)}?", options.yes):
                raise typer.Exit(0)
            finished = await _follow(controller, plan, options.as_json)
        elif not fetching and not options.dry_run and not options.as_json and not _bad(plan):
            print("nothing to fetch: every host has the files", file=shown)
    if options.as_json:
        print_json(_document(plan, finished, options.dry_run))
    elif not options.dry_run:
        _print_outcome(finished, plan)
    _leave(plan, finished)


async def _stop(controller: Any, plan: controller_pb2.PullPlan, options: PullOptions) -> list[controller_pb2.HostEvent]:
    running = [host.host for pull in plan.pulls if pull.resumes for host in pull.hosts]
    if not running and not options.as_json:
        print("no such pull runs: these files to these hosts, from this source")
    if not running or options.dry_run:
        return []
    if not confirm(f"Stop the pull to {', '.join(running)}?", options.yes):
        raise typer.Exit(0)
    request = controller_pb2.RunPullRequest(plan_id=plan.plan_id, stop=True)
    return [event async for event in controller.Pull(request) if event.host in running]


async def _follow(controller: Any, plan: controller_pb2.PullPlan, quiet: bool) -> list[controller_pb2.HostEvent]:
    with PullDisplay(quiet) as display:
        async for event in controller.Pull(controller_pb2.RunPullRequest(plan_id=plan.plan_id)):
            display.show(event)
        return [display.finished[host] for host in sorted(display.finished)]


def print_pull_plan(plan: controller_pb2.PullPlan, stream: TextIO, begun: str = GOES_ON) -> None:
    """begun: what is said of a pull that was begun earlier."""
    rows = []
    for pull in plan.pulls:
        model = f"{pull.repository} {pull.quantization}".strip()
        rows += [_row(host, model) for host in pull.hosts]
    rows += [_row(host, "-") for host in plan.failed]
    print_table(COLUMNS, rows, STYLES, stream)
    for pull in plan.pulls:
        size = gibibytes(pull.total_bytes)
        files = "1 file" if pull.files == 1 else f"{pull.files} files"
        again = begun if pull.resumes else ""
        print(f"{again}{files}, {size}, from {pull.source}", file=stream)
        for note in pull.notes:
            print(f"note: {note}", file=stream)
    for host in [host for pull in plan.pulls for host in pull.hosts] + list(plan.failed):
        if host.HasField("problem"):
            report(f"{host.host}: {host.problem.message}", host.problem.remedy)


def _row(host: controller_pb2.PullHost, model: str) -> tuple[str, ...]:
    free = gibibytes(host.free_bytes) if host.HasField("free_bytes") else "-"
    missing = gibibytes(host.missing_bytes) if host.missing_bytes and host.part in ("fetch", "refuse") else "-"
    return host.host, host.part, missing, free, model


def _bad(plan: controller_pb2.PullPlan) -> list[controller_pb2.PullHost]:
    return [host for pull in plan.pulls for host in pull.hosts if host.HasField("problem")] + list(plan.failed)


def _document(plan: controller_pb2.PullPlan, finished: list[controller_pb2.HostEvent], dry_run: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "plan_id": plan.plan_id,
        "pulls": [plain(pull) for pull in plan.pulls],
        "failed": [plain(host) for host in plan.failed],
    }
    if not dry_run:
        document["hosts"] = [outcome(event) for event in finished if event.host != ALL]
        document["all"] = [outcome(event) for event in finished if event.host == ALL]
    return document


def _print_outcome(finished: list[controller_pb2.HostEvent], plan: controller_pb2.PullPlan) -> None:
    told = {host.host for host in _bad(plan)}
    for event in finished:
        if event.HasField("problem"):
            if event.host not in told:
                report(f"{event.host}: {event.problem.message}", event.problem.remedy, event.problem.tail)
        else:
            print(f"{event.host}: {event.message}")


def _leave(plan: controller_pb2.PullPlan, finished: list[controller_pb2.HostEvent]) -> None:
    bad = _bad(plan)
    if any(host.part == "fail" for host in bad):
        raise typer.Exit(SOME_HOST_FAILED)
    leave_with([event for event in finished if event.host not in {host.host for host in bad}])
    if bad:
        raise typer.Exit(REFUSED)
