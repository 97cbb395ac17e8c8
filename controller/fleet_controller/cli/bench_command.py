"""What `fleet bench` does: plan, show what it takes, ask, run, and show the figures."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import typer

from fleet_controller.benchmarking.devices import wall_seconds
from fleet_controller.cli.cell_view import leave, print_cell_commands, print_cell_problem, where_and_what_pauses
from fleet_controller.cli.client import call, connected_controller, typed_command
from fleet_controller.cli.events import follow_events, outcome
from fleet_controller.cli.failures import UsageFailure, report
from fleet_controller.cli.messages import plain, word_of
from fleet_controller.cli.output import (
    GREEN,
    RED,
    YELLOW,
    confirm,
    duration,
    gibibytes,
    print_json,
    print_table,
)
from fleet_proto.v1 import controller_pb2

COLUMNS = ("HOST", "MODEL", "QUANT", "BACKEND", "CLIENT", "RUNS", "TIME", "DISK", "ACTION", "WHY")
RESULT_COLUMNS = ("HOST", "MODEL", "QUANT", "BACKEND", "TEST", "RESULT", "UNIT", "95 % INTERVAL")
STYLES = {"run": GREEN, "skip": YELLOW, "refuse": RED, "fail": RED}
SECONDS_PER_MINUTE = 60.0
SHOWN_KINDS = ("pp", "tg", "ttft", "energy", "total")


@dataclass(frozen=True)
class BenchOptions:
    models: tuple[str, ...]
    pattern: str
    backend: str
    quantization: str
    suite: str
    client: str
    endpoint: str
    repeat: int
    again: bool
    when_idle: bool
    pause_services: bool
    prompt_tokens: int | None
    generation_tokens: int | None
    repetitions: int | None
    repository: str
    backend_version: str
    engine_path: str
    offline_folder: str
    tokenizer: str
    to_decide: bool
    goal: str
    budget_minutes: float | None
    dry_run: bool
    yes: bool
    as_json: bool


def run_bench(options: BenchOptions) -> None:
    """Exit code 1 where a cell could not be measured, 3 where all that were not were refused."""
    if not options.pattern and not options.endpoint:
        raise UsageFailure("name the hosts with --hosts PATTERN", "fleet hosts lists them")
    if not options.models and not options.repository and not options.endpoint:
        raise UsageFailure("name a model, or give --repo owner/name", "fleet models lists the catalog")
    if (options.goal or options.budget_minutes is not None) and not options.to_decide:
        raise UsageFailure("--goal and --budget are for a decision", "add --to-decide, or leave them out")
    if options.budget_minutes == 0:
        raise UsageFailure("a budget of 0 minutes leaves time for no run", "leave --budget out for no limit")
    if options.to_decide and (options.endpoint or options.again or options.repeat > 1):
        message = "--to-decide chooses by itself what is run how often"
        raise UsageFailure(message, "leave --endpoint, --again and --repeat out")
    call(_bench(options), when_interrupted=typed_command())


async def _bench(options: BenchOptions) -> None:
    own = {"dry_run", "yes", "as_json", "to_decide", "budget_minutes"}
    fields = {field.name for field in dataclasses.fields(options)} - own
    request = controller_pb2.BenchRequest(**{name: getattr(options, name) for name in sorted(fields)})
    if options.to_decide:
        request.purpose = controller_pb2.BENCH_PURPOSE_DECIDE
        request.budget_seconds = SECONDS_PER_MINUTE * (options.budget_minutes or 0.0)
    async with connected_controller() as controller:
        plan = await controller.PlanBench(request)
        stream = sys.stderr if options.as_json else sys.stdout
        if not (options.dry_run and options.as_json):
            print_bench_plan(plan, options.dry_run, stream)
        to_run = [cell for cell in plan.cells if cell.action == controller_pb2.CELL_ACTION_RUN]
        finished: list[controller_pb2.HostEvent] = []
        # A decision is told where nothing is left to run, too.
        if (to_run or options.to_decide) and not options.dry_run:
            if to_run and not confirm(_question(to_run), options.yes):
                raise typer.Exit(0)
            events = controller.Bench(controller_pb2.RunBenchRequest(plan_id=plan.plan_id))
            finished = await follow_events(events, quiet=options.as_json)
    if options.as_json:
        print_json(plan_document(plan, finished, options.dry_run))
    elif not options.dry_run:
        _print_outcome(finished)
    leave(plan, finished)


def print_bench_plan(plan: controller_pb2.BenchPlan, with_commands: bool, stream: TextIO) -> None:
    """One row a cell, what the whole takes, warnings and problems; with `with_commands` what runs, to be copied."""
    print_table(COLUMNS, [_row(cell) for cell in plan.cells], STYLES, stream)
    print(_summary(plan), file=stream)
    for basis in dict.fromkeys(cell.estimate_basis for cell in plan.cells if cell.runs and cell.estimate_basis):
        print(f"time: {basis}", file=stream)
    for cell in plan.cells:
        for warning in dict.fromkeys(cell.warnings):
            print(f"{cell.host}: {_name(cell)}: {warning}", file=stream)
        print_cell_problem(cell, _name(cell), stream)
    for cell in plan.cells if with_commands else ():
        print_cell_commands(cell, _name(cell), stream)


def _row(cell: controller_pb2.BenchCell) -> tuple[str, ...]:
    engine = f"{cell.backend} {cell.backend_version}".strip() + (" (install)" if cell.install_needed else "")
    time = f"{'~' if cell.estimate_is_guess else ''}{duration(cell.estimated_seconds)}" if cell.runs else "-"
    why = "see below" if cell.HasField("problem") else cell.reason or ", ".join(cell.tests)
    if cell.paused_services and cell.runs:
        why += f"; pauses {', '.join(cell.paused_services)}"
    client = (cell.client or "-") + (" (foreign server)" if cell.foreign else "")
    return (
        cell.host, cell.model or "-", cell.quantization or "-", engine or "-", client, str(cell.runs or "-"), time,
        gibibytes(cell.disk_bytes) if cell.disk_bytes else "-", word_of(cell, "action"), why,
    )  # fmt: skip


def _summary(plan: controller_pb2.BenchPlan) -> str:
    """Hosts work side by side, and so do the devices of a host."""
    by_host: dict[str, list[tuple[Sequence[int], float]]] = {}
    for cell in plan.cells:
        by_host.setdefault(cell.host, []).append((cell.gpu_indices, cell.estimated_seconds))
    runs = sum(cell.runs for cell in plan.cells)
    download = sum(cell.download_bytes for cell in plan.cells)
    longest = max(map(wall_seconds, by_host.values()), default=0.0)
    guessed = any(cell.estimate_is_guess for cell in plan.cells if cell.runs)
    text = f"suite {plan.suite}: {runs} runs on {len(by_host)} hosts, {'about ' if guessed else ''}{duration(longest)}"
    return f"{text}, {gibibytes(download)} to download" if download else text


def _question(cells: list[controller_pb2.BenchCell]) -> str:
    return f"Measure on {where_and_what_pauses(cells)}?"


def _name(cell: controller_pb2.BenchCell) -> str:
    return " ".join(part for part in (cell.model, cell.quantization, cell.backend, cell.client) if part)


def plan_document(plan: controller_pb2.BenchPlan, finished: list[Any], dry_run: bool) -> dict[str, Any]:
    """For `--json`: the plan and, where it was run, how each host ended."""
    document: dict[str, Any] = {
        "plan_id": plan.plan_id, "suite": plan.suite, "plan": [plain(cell) for cell in plan.cells]
    }  # fmt: skip
    if not dry_run:
        document["hosts"] = [outcome(event) for event in finished]
    return document


def _print_outcome(finished: list[Any]) -> None:
    rows = []
    for event in finished:
        report_problems(event)
        result = json.loads(event.json) if event.json else {"cells": []}
        for cell in result["cells"]:
            for row in cell["rows"]:
                if row["test_kind"] in SHOWN_KINDS:
                    rows.append(_result_row(event.host, cell, row))
    if rows:
        print_table(RESULT_COLUMNS, rows)
    for event in finished:
        print_decision(event)


def print_decision(event: Any) -> None:
    """What a bench that decides came to on one host; nothing for other benches."""
    decision = json.loads(event.json).get("decision") if event.json else None
    if decision is None:
        return
    print(f"\n{event.host}: {decision['text']}")
    for line in decision["explanation"]:
        print(f"  {line}")
    ran = [f"{item['name']} ({item['runs']} run{'s' if item['runs'] > 1 else ''})" for item in decision["ran"]]
    print(f"  ran: {', '.join(ran) or 'nothing'}")
    for item in decision["not_run"]:
        why = f": {item['better']} is better" if item["better"] else ""
        why = f": held back, {item['held_back']}" if item["held_back"] else why
        print(f"  not run: {item['name']}{why}, about {duration(item['seconds'])}")
    if decision["not_run"]:
        print(f"  saved: about {duration(decision['saved_seconds'])} by the plan's estimate")


def report_problems(event: Any) -> None:
    """What of a host's cells could not be measured, and why."""
    result = json.loads(event.json) if event.json else {"cells": []}
    for cell in result["cells"]:
        if cell["problem"] is not None:
            what = " ".join(part for part in (cell["model"], cell["quantization"], cell["backend"]) if part)
            report(f"{event.host}: {what}: {cell['problem']['message']}", cell["problem"]["remedy"])
    if event.HasField("problem") and not result["cells"]:
        report(f"{event.host}: {event.problem.message}", event.problem.remedy)


def _result_row(host: str, cell: dict[str, Any], row: dict[str, Any]) -> tuple[str, ...]:
    from fleet_controller.results.columns import Result
    from fleet_controller.results.statistics import interval_of

    interval = interval_of(Result.model_validate({k: v for k, v in row.items() if k in Result.model_fields}))
    deviation = f" ± {row['deviation']:,.2f}" if row["deviation"] is not None else ""
    limits = f"{max(interval[0], 0.0):,.2f} to {interval[1]:,.2f}" if interval else "-"
    engine = f"{cell['backend']} {cell['backend_version']}".strip()
    return (
        host, cell["model"], cell["quantization"] or "-", engine, row["test"], f"{row['mean']:,.2f}{deviation}",
        row["unit"], limits,
    )  # fmt: skip
