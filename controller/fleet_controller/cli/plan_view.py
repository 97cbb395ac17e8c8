"""A deploy plan for a person: what would happen on each host, why it fits, and on demand the exact commands."""

import sys
from typing import TextIO

from fleet_controller.cli.messages import word_of
from fleet_controller.cli.output import GREEN, RED, YELLOW, gibibytes, print_table, shell_quoted
from fleet_proto.v1 import controller_pb2

COLUMNS = ("HOST", "ACTION", "BACKEND", "QUANT", "CONTEXT", "PORT", "FIT", "DOWNLOAD", "WHY")
STYLES = {
    "keep": GREEN,
    "start": GREEN,
    "replace": YELLOW,
    "refuse": RED,
    "fail": RED,
    "fits": GREEN,
    "fits-with-offload": YELLOW,
    "refused": RED,
}


def print_plan(plan: controller_pb2.DeployPlan, with_commands: bool, stream: TextIO | None = None) -> None:
    """The table, the arithmetic under it, warnings and problems; with `with_commands` what runs, to be copied."""
    stream = stream or sys.stdout
    print_table(COLUMNS, [_row(host) for host in plan.hosts], STYLES, stream)
    for host in plan.hosts:
        if host.because:
            print(f"{host.host}: chosen: {host.because}", file=stream)
        _print_arithmetic(host, stream)
        if host.old_server:
            print(f"{host.host}: {host.old_server}", file=stream)
        for warning in host.warnings:
            print(f"{host.host}: warning: {warning}", file=stream)
        if host.HasField("problem"):
            _print_problem(host, stream)
    if with_commands:
        for host in plan.hosts:
            print_commands(host, stream)


def _row(host: controller_pb2.HostPlan) -> tuple[str, ...]:
    failed = host.action == controller_pb2.PLAN_ACTION_FAIL
    engine = f"{host.backend} {host.backend_version}".strip()
    return (
        host.host,
        word_of(host, "action"),
        (engine + (" (install)" if host.install_needed else "")) or "-",
        host.quantization or "-",
        f"{host.context_length:,}" if host.context_length else "-",
        str(host.port) if host.port else "-",
        word_of(host, "fit") if host.fit else "-",
        gibibytes(host.download_bytes) if host.download_bytes else "-",
        "see below" if failed or host.HasField("problem") else host.reason or "-",
    )


def _print_arithmetic(host: controller_pb2.HostPlan, stream: TextIO) -> None:
    if not host.fit_lines:
        return
    needed = sum(line.bytes for line in host.fit_lines)
    free = gibibytes(host.free_bytes) if host.HasField("free_bytes") else "an unknown amount"
    parts = " + ".join(f"{line.what} {gibibytes(line.bytes)}" for line in host.fit_lines)
    print(f"{host.host}: {parts} = {gibibytes(needed)} of {free} free {host.memory_kind}".rstrip(), file=stream)
    for line in host.fit_lines:
        if line.arithmetic:
            print(f"{host.host}:   {line.what}: {line.arithmetic}", file=stream)
    if host.longest_context:
        print(f"{host.host}:   longest context that fits entirely: {host.longest_context:,}", file=stream)


def _print_problem(host: controller_pb2.HostPlan, stream: TextIO) -> None:
    refused = host.action == controller_pb2.PLAN_ACTION_REFUSE
    error_stream = sys.stderr if stream is sys.stdout else stream
    print(f"error: {host.host}: {'refused: ' if refused else ''}{host.problem.message}", file=error_stream)
    if host.problem.remedy:
        print(f"  next: {host.problem.remedy}", file=error_stream)


def print_commands(host: controller_pb2.HostPlan | controller_pb2.HostEnginesPlan, stream: TextIO) -> None:
    """One command a line, quoted for a POSIX shell with its environment in front; comments say what the agent does."""
    if not host.commands:
        return
    print(f"\n# {host.host}", file=stream)
    for command in host.commands:
        if command.description:
            print(f"# {command.purpose}: {command.description}", file=stream)
        if command.argv:
            if not command.description:
                print(f"# {command.purpose}", file=stream)
            environment = [(variable.name, variable.value) for variable in command.environment]
            print(shell_quoted(list(command.argv), environment), file=stream)
