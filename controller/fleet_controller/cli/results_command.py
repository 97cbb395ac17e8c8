"""What `fleet bench` and `fleet matrix` do."""

import sys
from dataclasses import dataclass

import typer

from fleet_controller.cli.client import call, connected_controller, typed_command
from fleet_controller.cli.events import finish_events, follow_events
from fleet_controller.cli.messages import plain
from fleet_controller.cli.output import confirm, print_json, print_table
from fleet_controller.cli.services_command import demand_deployed
from fleet_controller.results.matrix import Figure, build_matrix
from fleet_proto.v1 import controller_pb2


@dataclass(frozen=True)
class BenchOptions:
    model: str
    pattern: str
    prompt_tokens: int
    generation_tokens: int
    repetitions: int
    yes: bool
    as_json: bool


def run_bench(options: BenchOptions) -> None:
    """Exit code 1 where a host could not be measured."""
    call(_bench(options), when_interrupted=typed_command())


async def _bench(options: BenchOptions) -> None:
    request = controller_pb2.BenchRequest(
        model=options.model,
        pattern=options.pattern,
        prompt_tokens=options.prompt_tokens,
        generation_tokens=options.generation_tokens,
        repetitions=options.repetitions,
    )
    what = f"prefill of {options.prompt_tokens} and decode of {options.generation_tokens} tokens"
    async with connected_controller() as controller:
        selection = controller_pb2.ListServicesQuery(pattern=options.pattern)
        demand_deployed(options.model, [host async for host in controller.ListServices(selection)])
        print(f"{options.model} on {options.pattern}: {what}, {options.repetitions} times each", file=sys.stderr)
        print("the processor or GPU is fully busy meanwhile; nothing is changed on the hosts", file=sys.stderr)
        if not confirm("Measure now?", options.yes):
            raise typer.Exit(0)
        finished = await follow_events(controller.Bench(request), quiet=options.as_json)
    finish_events(finished, options.as_json)


def run_matrix(model: str, host_glob: str, as_json: bool) -> None:
    """Print what was measured; an empty table is no error."""
    rows = call(_fetch(model, host_glob))
    matrix = build_matrix(
        Figure(
            row.host,
            row.model,
            row.quantization,
            row.backend,
            row.test,
            row.mean_tokens_per_second,
            row.finished_unix_ms,
        )
        for row in rows
    )
    if as_json:
        print_json({"results": [plain(row) for row in rows]})
    elif not matrix.rows:
        print("nothing was measured yet; next: fleet bench MODEL --hosts PATTERN", file=sys.stderr)
    else:
        columns = ("MODEL", "QUANT", "BACKEND", "TOKENS/S OF", *matrix.hosts)
        table = [(*row, *(matrix.cells.get((row, host), "-") for host in matrix.hosts)) for row in matrix.rows]
        print_table(columns, table)


async def _fetch(model: str, host_glob: str) -> list[controller_pb2.ResultRow]:
    async with connected_controller() as controller:
        reply = await controller.ListResults(controller_pb2.ListResultsRequest(pattern=host_glob, model=model))
        return list(reply.rows)
