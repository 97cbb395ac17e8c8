"""What `fleet eval` does: plan, show what it takes, ask, run, and show the scores."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import typer

from fleet_controller.cli.cell_view import leave, print_cell_commands, print_cell_problem, where_and_what_pauses
from fleet_controller.cli.client import call, connected_controller, typed_command
from fleet_controller.cli.events import follow_events, outcome
from fleet_controller.cli.failures import UsageFailure, report
from fleet_controller.cli.messages import plain, word_of
from fleet_controller.cli.output import (
    GREEN,
    RED,
    YELLOW,
    can_ask,
    confirm,
    duration,
    gibibytes,
    print_json,
    print_table,
)
from fleet_controller.cli.quality_view import print_rows
from fleet_proto.v1 import controller_pb2

COLUMNS = ("HOST", "MODEL", "QUANT", "BACKEND", "PROTOCOL", "ASKS", "QUESTIONS", "AT ONCE", "TIME", "ACTION", "WHY")
STYLES = {"run": GREEN, "skip": YELLOW, "refuse": RED, "fail": RED}
DEFAULT_PROTOCOL = "lm-eval"


@dataclass(frozen=True)
class EvalOptions:
    models: tuple[str, ...]
    pattern: str
    protocol: str
    perplexity: bool
    quantization: str
    subjects: tuple[str, ...]
    questions: int
    all: bool
    workers: int
    max_tokens: int
    seed: int
    dataset: str
    deploy: bool
    backend: str
    repository: str
    backend_version: str
    engine_path: str
    offline_folder: str
    corpus: str
    chunks: int
    context: int
    pause_services: bool
    again: bool
    base: str
    dry_run: bool
    yes: bool
    as_json: bool


def run_eval(options: EvalOptions) -> None:
    """Exit code 1 where something could not be judged, 3 where all that was not was refused."""
    if not options.pattern:
        raise UsageFailure("name the hosts with --hosts PATTERN", "fleet hosts lists them")
    if not options.models and not options.repository:
        raise UsageFailure("name a model, or give --repo owner/name", "fleet models lists the catalog")
    if options.all and options.questions:
        raise UsageFailure("--all and --questions exclude each other", "leave one of them out")
    if options.perplexity and (options.subjects or options.questions or options.all or options.dataset):
        raise UsageFailure("--perplexity asks no questions", "--corpus FILE and --chunks N say what it reads")
    if options.perplexity and (options.protocol != DEFAULT_PROTOCOL or options.deploy):
        raise UsageFailure("--perplexity reads files, and asks no server", "leave --protocol and --deploy out")
    if not options.perplexity and (options.corpus or options.chunks or options.base):
        raise UsageFailure("--corpus, --chunks and --base go with --perplexity", "add it, or leave them out")
    call(_evaluate(options), when_interrupted=typed_command())


def _request(options: EvalOptions) -> controller_pb2.EvalRequest:
    """The controller may run in another folder: files are named in full."""
    fields = {field.name for field in dataclasses.fields(options)} - {"dry_run", "yes", "as_json"}
    values = {name: getattr(options, name) for name in sorted(fields)}
    for name in ("dataset", "corpus"):
        values[name] = str(Path(values[name]).expanduser().absolute()) if values[name] else ""
    return controller_pb2.EvalRequest(**values)


async def _evaluate(options: EvalOptions) -> None:
    request = _request(options)
    async with connected_controller() as controller:
        plan = await controller.PlanEval(request)
        if _may_ask_for_server(options, plan) and confirm(
            f"No service of {', '.join(options.models)} is ready. Plan a server for this evaluation?", False
        ):
            request.deploy = True
            plan = await controller.PlanEval(request)
        stream = sys.stderr if options.as_json else sys.stdout
        if not (options.dry_run and options.as_json):
            print_eval_plan(plan, options.dry_run, stream)
        to_run = [cell for cell in plan.cells if cell.action == controller_pb2.CELL_ACTION_RUN]
        finished: list[controller_pb2.HostEvent] = []
        if to_run and not options.dry_run:
            if not confirm(_question(to_run), options.yes):
                raise typer.Exit(0)
            events = controller.Eval(controller_pb2.RunEvalRequest(plan_id=plan.plan_id))
            finished = await follow_events(events, quiet=options.as_json)
    if options.as_json:
        print_json(_document(plan, finished, options.dry_run))
    elif not options.dry_run:
        _print_outcome(finished)
    leave(plan, finished)


def _may_ask_for_server(options: EvalOptions, plan: controller_pb2.EvalPlan) -> bool:
    """Where nothing serves the model, and a person is there to say whether something should."""
    if options.yes or options.dry_run or not can_ask():
        return False
    codes = {cell.problem.code for cell in plan.cells if cell.HasField("problem")}
    return codes == {"no-service"} and not any(cell.action == controller_pb2.CELL_ACTION_RUN for cell in plan.cells)


def print_eval_plan(plan: controller_pb2.EvalPlan, with_commands: bool, stream: TextIO) -> None:
    """One row a cell, what the whole takes, warnings and problems; with `with_commands` what runs, to be copied."""
    print_table(COLUMNS, [_row(cell) for cell in plan.cells], STYLES, stream)
    for note in plan.notes:
        print(note, file=stream)
    for basis in dict.fromkeys(cell.estimate_basis for cell in plan.cells if cell.estimate_basis):
        print(f"time: {basis}", file=stream)
    for cell in plan.cells:
        _print_needs(cell, stream)
        for warning in dict.fromkeys(cell.warnings):
            print(f"{cell.host}: {_name(cell)}: {warning}", file=stream)
        print_cell_problem(cell, _name(cell), stream)
    for cell in plan.cells if with_commands else ():
        print_cell_commands(cell, _name(cell), stream)


def _print_needs(cell: controller_pb2.EvalCell, stream: TextIO) -> None:
    if cell.action != controller_pb2.CELL_ACTION_RUN:
        return
    parts = [f"{gibibytes(cell.download_bytes)} to download"] if cell.download_bytes else []
    parts += [f"up to {gibibytes(cell.disk_bytes)} of disk"] if cell.install_needed and cell.disk_bytes else []
    parts += [f"pauses {', '.join(cell.paused_services)}"] if cell.paused_services else []
    if parts:
        print(f"{cell.host}: {_name(cell)}: {', '.join(parts)}", file=stream)


def _row(cell: controller_pb2.EvalCell) -> tuple[str, ...]:
    install = " (install)" if cell.install_needed else ""
    # Where a service is asked, what is missing is the harness; else it may be the engine, too.
    asks_service = cell.server.startswith("service ")
    engine = f"{cell.backend} {cell.backend_version}".strip() + ("" if asks_service else install)
    protocol = (cell.protocol or "-") + (install if asks_service else "")
    return (
        cell.host, cell.model or "-", cell.quantization or "-", engine or "-", protocol, cell.server or "-",
        str(cell.questions or "-"), str(cell.workers or "-"),
        f"about {duration(cell.estimated_seconds)}" if cell.estimated_seconds else "-", word_of(cell, "action"),
        "see below" if cell.HasField("problem") else cell.reason or "-",
    )  # fmt: skip


def _question(cells: list[controller_pb2.EvalCell]) -> str:
    return f"Evaluate on {where_and_what_pauses(cells)}?"


def _name(cell: controller_pb2.EvalCell) -> str:
    return " ".join(part for part in (cell.model, cell.quantization, cell.backend) if part) or "evaluation"


def _document(plan: controller_pb2.EvalPlan, finished: list[Any], dry_run: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "plan_id": plan.plan_id, "notes": list(plan.notes), "plan": [plain(cell) for cell in plan.cells]
    }  # fmt: skip
    if not dry_run:
        document["hosts"] = [outcome(event) for event in finished]
    return document


def _print_outcome(finished: list[Any]) -> None:
    for event in finished:
        result = json.loads(event.json) if event.json else {"evaluations": []}
        for evaluation in result["evaluations"]:
            if evaluation["problem"] is not None:
                parts = (evaluation["model"], evaluation["quantization"], evaluation["backend"])
                what = " ".join(part for part in parts if part)
                report(f"{event.host}: {what}: {evaluation['problem']['message']}", evaluation["problem"]["remedy"],
                       evaluation["problem"]["tail"])  # fmt: skip
        if event.HasField("problem") and not result["evaluations"]:
            report(f"{event.host}: {event.problem.message}", event.problem.remedy, event.problem.tail)
        print_rows([row for evaluation in result["evaluations"] for row in evaluation["rows"]])
