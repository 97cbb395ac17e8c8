"""What `fleet backends ...` does: the table of engines; plan, show, ask, run for everything that changes them."""

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TextIO

import typer

from fleet_controller.cli.client import call, connected_controller, typed_command
from fleet_controller.cli.events import follow_events, leave_with, outcome
from fleet_controller.cli.failures import REFUSED, SOME_HOST_FAILED, UsageFailure, report
from fleet_controller.cli.installer_question import may_ask_for_script
from fleet_controller.cli.messages import plain, word_of
from fleet_controller.cli.output import GREEN, RED, YELLOW, confirm, duration, gibibytes, print_json, print_table
from fleet_controller.cli.plan_view import print_commands
from fleet_proto.v1 import agent_pb2, controller_pb2

LIST_COLUMNS = ("HOST", "BACKEND", "VERSION", "DISK", "AGE", "SERVED", "USED BY", "FROM", "KEY OR PATH")
PLAN_COLUMNS = ("HOST", "PLAN", "BACKEND", "VERSION", "WHY")
GOLDEN_COLUMNS = ("HOST", "MODEL", "TEST", "BEFORE", "AFTER", "CHANGE", "95 % INTERVAL", "VERDICT")
REMOVAL_COLUMNS = ("HOST", "", "INSTALL", "DISK", "WHY")
STYLES = {"keep": GREEN, "change": YELLOW, "refuse": RED, "fail": RED, "remove": YELLOW, "worse": RED, "as good": GREEN}
ACTIONS = {
    "install": controller_pb2.ENGINES_ACTION_INSTALL,
    "upgrade": controller_pb2.ENGINES_ACTION_UPGRADE,
    "remove": controller_pb2.ENGINES_ACTION_REMOVE,
    "gc": controller_pb2.ENGINES_ACTION_COLLECT,
}


def run_list(pattern: str, backend: str, as_json: bool) -> None:
    """Print the engines; exit code 1 where a host did not answer."""
    hosts = call(_fetch(pattern))
    if as_json:
        print_json({"hosts": [_document(host, backend) for host in hosts]})
    else:
        rows = [_row(host.host, engine) for host in hosts for engine in host.engines if _wanted(engine, backend)]
        if rows:
            print_table(LIST_COLUMNS, rows)
        elif any(not host.HasField("problem") for host in hosts):
            print("no engine is installed on these hosts", file=sys.stderr)
        for host in hosts:
            _print_notes(host)
    if any(host.HasField("problem") for host in hosts):
        raise typer.Exit(SOME_HOST_FAILED)


async def _fetch(pattern: str) -> list[controller_pb2.HostEngines]:
    async with connected_controller() as controller:
        selection = controller_pb2.HostSelection(pattern=pattern)
        found = [host async for host in controller.ListEngines(selection)]
    return sorted(found, key=lambda host: host.host)


def _wanted(engine: controller_pb2.HostEngine, backend: str) -> bool:
    return backend in ("", engine.facts.backend)


def _document(host: controller_pb2.HostEngines, backend: str) -> dict[str, Any]:
    engines = [plain(engine) for engine in host.engines if _wanted(engine, backend)]
    return {**plain(host), "engines": engines}


def _row(host: str, engine: controller_pb2.HostEngine) -> tuple[str, ...]:
    facts = engine.facts
    origin = ("adopted" if engine.adopted_path else "fleet") if facts.managed else "others"
    age = duration(time.time() - facts.created_unix_ms / 1000) if facts.HasField("created_unix_ms") else "-"
    served = "yes" if facts.HasField("served_unix_ms") else "no" if facts.managed else "-"
    return (
        host,
        facts.backend,
        (facts.version or "unknown") + (" (pinned)" if engine.pinned else ""),
        disk_text(engine.size_bytes, engine.shared_bytes) if engine.HasField("size_bytes") else "-",
        age,
        served,
        ", ".join([*engine.services, *engine.jobs]) or "-",
        origin,
        facts.install_key or facts.path,
    )


def disk_text(size_bytes: int, shared_bytes: int) -> str:
    """ "1.2 GiB", or "1.2 GiB (0.9 GiB shared)" where uv's cache has part of it too."""
    return gibibytes(size_bytes) + (f" ({gibibytes(shared_bytes)} shared)" if shared_bytes else "")


def _print_notes(host: controller_pb2.HostEngines) -> None:
    if host.HasField("problem"):
        report(f"{host.host}: {host.problem.message}", host.problem.remedy)
    idle = [leftover for leftover in host.leftovers if not leftover.used_by]
    if idle:
        freed = gibibytes(sum(leftover.size_bytes for leftover in idle))
        counted = _counted(idle)
        print(
            f"{host.host}: {freed} in {counted}; `fleet backends gc --hosts {host.host}` clears them", file=sys.stderr
        )


def _counted(leftovers: Iterable[agent_pb2.Leftover]) -> str:
    """ "2 sources, 1 lock" """
    words = [word_of(leftover, "kind") for leftover in leftovers]
    plural = {"unfinished": "unfinished installs", "build": "build folders", "download": "partial downloads"}
    one = {"unfinished": "unfinished install", "build": "build folder", "download": "partial download"}
    texts = []
    for word in dict.fromkeys(words):
        count = words.count(word)
        texts.append(f"{count} {one.get(word, word) if count == 1 else plural.get(word, f'{word}s')}")
    return ", ".join(texts)


@dataclass(frozen=True)
class ChangeOptions:
    command: str
    pattern: str
    dry_run: bool
    yes: bool
    as_json: bool


def share_of(text: str) -> float:
    """ "5%" or "5" as 0.05. Raises UsageFailure."""
    try:
        share = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        raise UsageFailure(f"--threshold takes a percentage, not {text!r}", "for example --threshold 5%") from None
    if not share > 0:  # the wire leaves a zero out: it would mean the default there
        raise UsageFailure("--threshold lies above 0 %", "for example --threshold 5%")
    return share


def run_change(options: ChangeOptions, **fields: Any) -> None:
    """Plan, show, ask, run. Exit code 1 where a host failed, 3 where one was refused."""
    action = ACTIONS[options.command]
    request = controller_pb2.EnginesRequest(action=action, pattern=options.pattern, **fields)
    call(_change(options, request), when_interrupted=typed_command())


async def _change(options: ChangeOptions, request: controller_pb2.EnginesRequest) -> None:
    shown = sys.stderr if options.as_json else sys.stdout
    finished: list[controller_pb2.HostEvent] = []
    async with connected_controller() as controller:
        plan, asks_about_script = await controller.PlanEngines(request), False
        installs = request.action == controller_pb2.ENGINES_ACTION_INSTALL
        if installs and may_ask_for_script(plan.hosts, agreed=request.run_installer, dry_run=options.dry_run):
            request.run_installer = asks_about_script = True
            plan = await controller.PlanEngines(request)
        if not (options.dry_run and options.as_json):
            print_engines_plan(plan, options.dry_run, shown)
        to_run = [host.host for host in plan.hosts if host.verdict == controller_pb2.ENGINES_VERDICT_CHANGE]
        if to_run and not options.dry_run:
            question = f"{options.command.capitalize()} on {', '.join(to_run)}?"
            if not confirm(question, options.yes and not asks_about_script):
                raise typer.Exit(0)
            events = controller.ChangeEngines(controller_pb2.ChangeEnginesRequest(plan_id=plan.plan_id))
            finished = await follow_events(events, quiet=options.as_json)
    if options.as_json:
        document: dict[str, Any] = {"plan_id": plan.plan_id, "plan": [plain(host) for host in plan.hosts]}
        print_json(document if options.dry_run else {**document, "hosts": [outcome(event) for event in finished]})
    elif not options.dry_run:
        _print_outcome(plan, finished)
    _leave(plan, finished)


def print_engines_plan(plan: controller_pb2.EnginesPlan, with_commands: bool, stream: TextIO) -> None:
    """What would happen on each host; with `with_commands` also what runs, to be copied."""
    rows = [(h.host, word_of(h, "verdict"), h.backend or "-", h.version or "-", h.reason or "-") for h in plan.hosts]
    print_table(PLAN_COLUMNS, rows, STYLES, stream)
    for host in plan.hosts:
        if host.install_needed:
            named = f"{host.backend} {host.version}".strip()
            print(
                f"{host.host}: installs {named}" + (f" as {host.install_key}" if host.install_key else ""), file=stream
            )
        for move in host.moves:
            text = f"moves {move.service}: {move.from_install_key} -> {move.to_install_key}"
            print(f"{host.host}: {text}; it is away while the new one loads", file=stream)
        for warning in host.warnings:
            print(f"{host.host}: warning: {warning}", file=stream)
        if host.HasField("problem"):
            _print_problem(host, stream)
    removals = [row for host in plan.hosts for row in _removal_rows(host)]
    if removals:
        print(file=stream)
        print_table(REMOVAL_COLUMNS, removals, STYLES, stream)
    if with_commands:
        for host in plan.hosts:
            print_commands(host, stream)


def _print_problem(host: controller_pb2.HostEnginesPlan, stream: TextIO) -> None:
    error_stream = sys.stderr if stream is sys.stdout else stream
    refused = "refused: " if host.verdict == controller_pb2.ENGINES_VERDICT_REFUSE else ""
    print(f"error: {host.host}: {refused}{host.problem.message}", file=error_stream)
    if host.problem.remedy:
        print(f"  next: {host.problem.remedy}", file=error_stream)


def _removal_rows(host: controller_pb2.HostEnginesPlan) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (host.host, "remove", one.install_key, gibibytes(one.freed_bytes), one.reason) for one in host.removals
    ]
    rows += [(host.host, "remove", one.path, gibibytes(one.size_bytes), word_of(one, "kind")) for one in host.leftovers]
    return rows + [(host.host, "keep", one.install_key, "-", one.reason) for one in host.kept]


def _golden_rows(event: controller_pb2.HostEvent) -> list[tuple[str, ...]]:
    """One row a test, and one for the chat, of what a canary was measured."""
    rows: list[tuple[str, ...]] = []
    for judgement in json.loads(event.json).get("golden", []) if event.json else []:
        service = ""
        for figure in judgement["figures"]:
            service = figure["service"]
            limits = figure["change_interval"]
            interval = f"{100 * limits[0]:+.1f} to {100 * limits[1]:+.1f} %" if limits else "-"
            rows.append((event.host, service, figure["test"], f"{figure['before']:,.1f} t/s",
                         f"{figure['after']:,.1f} t/s", f"{100 * figure['change']:+.1f} %", interval,
                         "worse" if figure["worse"] else "as good"))  # fmt: skip
        before, after = judgement["reply_before"], judgement["reply_after"]
        verdict = "not judged" if before is None else "as good" if before == after else "worse"
        same = "-" if before is None else "same" if before == after else "another"
        rows.append((event.host, service, "reply", "-", same, "-", "-", verdict))
    return rows


def _print_outcome(plan: controller_pb2.EnginesPlan, finished: list[controller_pb2.HostEvent]) -> None:
    golden = [row for event in finished for row in _golden_rows(event)]
    if golden:
        print_table(GOLDEN_COLUMNS, golden, STYLES)
    for event in finished:
        if event.HasField("problem"):
            report(f"{event.host}: {event.problem.message}", event.problem.remedy, event.problem.tail)
        else:
            print(f"{event.host}: {event.message}")
    if plan.hosts and all(host.verdict == controller_pb2.ENGINES_VERDICT_KEEP for host in plan.hosts):
        print("nothing to change")


def _leave(plan: controller_pb2.EnginesPlan, finished: list[controller_pb2.HostEvent]) -> None:
    if any(host.verdict == controller_pb2.ENGINES_VERDICT_FAIL for host in plan.hosts):
        raise typer.Exit(SOME_HOST_FAILED)
    leave_with(finished)
    if any(host.verdict == controller_pb2.ENGINES_VERDICT_REFUSE for host in plan.hosts):
        raise typer.Exit(REFUSED)
