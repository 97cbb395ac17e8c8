"""What `fleet logs` does."""

import sys
from typing import Any

import typer

from fleet_controller.cli.client import call, connected_controller
from fleet_controller.cli.failures import SOME_HOST_FAILED, UsageFailure, report
from fleet_controller.cli.messages import plain
from fleet_controller.cli.output import print_json
from fleet_proto.v1 import controller_pb2

Problems = dict[str, controller_pb2.HostLogChunk]


def run_logs(model: str, pattern: str, follow: bool, tail_lines: int, as_json: bool) -> None:
    """Print a service's log, each line with its host's name; exit code 1 where a host has none or did not answer."""
    if follow and as_json:
        raise UsageFailure("--json gives one document, and --follow never ends", "leave one of them out")
    lines: dict[str, list[str]] = {}

    def take(host: str, line: str) -> None:
        if as_json:
            lines.setdefault(host, []).append(line)
        else:
            print(f"{host}: {line}")

    request = controller_pb2.ReadLogsRequest(pattern=pattern, model=model, follow=follow, tail_lines=tail_lines)
    try:
        problems = call(_read(request, take))
    except KeyboardInterrupt:
        return  # the ordinary end of `-f`
    if as_json:
        print_json({"hosts": _document(lines, problems)})
    else:
        for host, chunk in sorted(problems.items()):
            report(f"{host}: {chunk.problem.message}", chunk.problem.remedy)
    if problems:
        raise typer.Exit(SOME_HOST_FAILED)


async def _read(request: controller_pb2.ReadLogsRequest, take: Any) -> Problems:
    """Hands on whole lines as they come; the problems of hosts that matter."""
    problems: Problems = {}
    unfinished: dict[str, bytes] = {}
    async with connected_controller() as controller:
        async for chunk in controller.ReadLogs(request):
            if chunk.HasField("problem"):
                problems[chunk.host] = chunk
                continue
            *lines, rest = (unfinished.get(chunk.host, b"") + chunk.data).split(b"\n")
            unfinished[chunk.host] = rest
            for line in lines:
                take(chunk.host, line.decode("utf-8", "replace"))
            sys.stdout.flush()
    for host, rest in unfinished.items():
        if rest:
            take(host, rest.decode("utf-8", "replace"))
    elsewhere = bool(unfinished) and request.pattern == "all"  # `fleet logs MODEL` means: wherever it is deployed
    return {host: chunk for host, chunk in problems.items() if not (elsewhere and chunk.problem.code == "not-deployed")}


def _document(lines: dict[str, list[str]], problems: Problems) -> list[dict[str, Any]]:
    return [
        {
            "host": host,
            "lines": lines.get(host, []),
            "problem": plain(problems[host].problem) if host in problems else None,
        }
        for host in sorted({*lines, *problems})
    ]
