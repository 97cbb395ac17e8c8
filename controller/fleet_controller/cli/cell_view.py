"""Cells of a bench or an evaluation for a person: what stands in their way, what runs, and how the command ends."""

import sys
from typing import TextIO

import typer

from fleet_controller.cli.events import leave_with
from fleet_controller.cli.failures import REFUSED, SOME_HOST_FAILED
from fleet_controller.cli.output import shell_quoted
from fleet_proto.v1 import controller_pb2

Cell = controller_pb2.BenchCell | controller_pb2.EvalCell


def print_cell_problem(cell: Cell, name: str, stream: TextIO) -> None:
    """On stderr where the plan is on stdout; nothing where there is none."""
    if not cell.HasField("problem"):
        return
    error_stream = sys.stderr if stream is sys.stdout else stream
    refused = "refused: " if cell.action == controller_pb2.CELL_ACTION_REFUSE else ""
    subject = ": ".join(part for part in (cell.host, name) if part)
    print(f"error: {subject}: {refused}{cell.problem.message}", file=error_stream)
    if cell.problem.remedy:
        print(f"  next: {cell.problem.remedy}", file=error_stream)


def print_cell_commands(cell: Cell, name: str, stream: TextIO) -> None:
    """What runs, to be copied; nothing of what is skipped."""
    if not cell.commands or cell.action == controller_pb2.CELL_ACTION_SKIP:
        return
    print(f"\n# {cell.host}: {name}", file=stream)
    for command in cell.commands:
        print(f"# {command.purpose}: {command.description}".rstrip(": "), file=stream)
        if command.argv:
            environment = [(variable.name, variable.value) for variable in command.environment]
            print(shell_quoted(list(command.argv), environment), file=stream)


def where_and_what_pauses(cells: list[controller_pb2.BenchCell] | list[controller_pb2.EvalCell]) -> str:
    """As "gpu1, gpu2 (qwen on gpu1 will be stopped meanwhile, and started again)"."""
    hosts = ", ".join(dict.fromkeys(cell.host for cell in cells))
    paused = sorted({f"{name} on {cell.host}" for cell in cells for name in cell.paused_services})
    return hosts + (f" ({', '.join(paused)} will be stopped meanwhile, and started again)" if paused else "")


def leave(plan: controller_pb2.BenchPlan | controller_pb2.EvalPlan, finished: list[controller_pb2.HostEvent]) -> None:
    """Exit code 1 where a cell could not be had, 3 where all that were not were refused; else it returns."""
    leave_with(finished)
    if any(cell.action == controller_pb2.CELL_ACTION_FAIL for cell in plan.cells):
        raise typer.Exit(SOME_HOST_FAILED)
    if any(cell.action == controller_pb2.CELL_ACTION_REFUSE for cell in plan.cells):
        raise typer.Exit(REFUSED)
