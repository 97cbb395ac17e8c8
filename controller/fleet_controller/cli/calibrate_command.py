"""What `fleet calibrate` does: plan, show what it takes, ask, run, and show what became of the predictions."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import Any

import typer

from fleet_controller.cli.bench_command import plan_document, print_bench_plan, report_problems
from fleet_controller.cli.cell_view import leave
from fleet_controller.cli.client import call, connected_controller, typed_command
from fleet_controller.cli.events import follow_events
from fleet_controller.cli.output import confirm, print_json, print_table
from fleet_proto.v1 import controller_pb2

COLUMNS = ("HOST", "MODEL", "QUANT", "TEST", "WITHOUT", "WITH", "UNCERTAINTY")


@dataclass(frozen=True)
class CalibrateOptions:
    pattern: str
    models: tuple[str, ...]
    again: bool
    when_idle: bool
    pause_services: bool
    backend_version: str
    engine_path: str
    offline_folder: str
    dry_run: bool
    yes: bool
    as_json: bool


def run_calibrate(options: CalibrateOptions) -> None:
    """Exit code 1 where a host could not be calibrated, 3 where all that were not were refused."""
    call(_calibrate(options), when_interrupted=typed_command())


async def _calibrate(options: CalibrateOptions) -> None:
    fields = {field.name for field in dataclasses.fields(options)} - {"dry_run", "yes", "as_json"}
    values = {name: getattr(options, name) for name in sorted(fields)}
    request = controller_pb2.BenchRequest(**values, purpose=controller_pb2.BENCH_PURPOSE_CALIBRATE)
    async with connected_controller() as controller:
        plan = await controller.PlanBench(request)
        if not (options.dry_run and options.as_json):
            print_bench_plan(plan, options.dry_run, sys.stderr if options.as_json else sys.stdout)
        to_run = [cell for cell in plan.cells if cell.action == controller_pb2.CELL_ACTION_RUN]
        finished: list[controller_pb2.HostEvent] = []
        if not options.dry_run:
            hosts = ", ".join(dict.fromkeys(cell.host for cell in to_run))
            if to_run and not confirm(f"Calibrate {hosts}?", options.yes):
                raise typer.Exit(0)
            events = controller.Bench(controller_pb2.RunBenchRequest(plan_id=plan.plan_id))
            finished = await follow_events(events, quiet=options.as_json)
    if options.as_json:
        print_json(plan_document(plan, finished, options.dry_run))
    elif not options.dry_run:
        _print_outcome(finished)
    leave(plan, finished)


def _print_outcome(finished: list[Any]) -> None:
    rows = []
    for event in finished:
        report_problems(event)
        result = json.loads(event.json) if event.json else {}
        told = result.get("predictions", [])
        rows += [_row(event.host, one) for one in told]
        if not told and not event.HasField("problem"):
            print(f"{event.host}: {event.message}; nothing is known of its chip, so nothing can be predicted there")
    if rows:
        print_table(COLUMNS, rows)
        print("t/s with 80 % intervals; uncertainty: how many times the low end the high end is, without and with")


def _row(host: str, told: dict[str, Any]) -> tuple[str, ...]:
    before, after = told["before"], told["after"]
    factors = " -> ".join(f"{one['high'] / one['low']:.2f}x" for one in (before, after))
    return host, told["model"], told["quantization"], told["test"], _interval(before), _interval(after), factors


def _interval(told: dict[str, float]) -> str:
    return f"{told['value']:,.4g} ({told['low']:,.4g} to {told['high']:,.4g})"
