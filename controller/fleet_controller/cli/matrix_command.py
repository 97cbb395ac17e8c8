"""What `fleet matrix` does."""

import sys
import time
from dataclasses import dataclass

from fleet_controller.cli.client import call
from fleet_controller.cli.failures import UsageFailure
from fleet_controller.cli.output import print_table
from fleet_controller.cli.output_file import write_output
from fleet_controller.cli.results_list_command import fetch, known_sources
from fleet_controller.results.comparability import depth_range
from fleet_controller.results.matrix import METRICS, Matrix, build_matrix
from fleet_controller.results.matrix_render import RENDERERS, legend, table_cells
from fleet_proto.v1 import controller_pb2

TABLE, HTML = "table", "html"
COLUMN_KINDS = ("host", "chip")


@dataclass(frozen=True)
class MatrixOptions:
    """As typed."""

    models: tuple[str, ...]
    metric: str
    depth: int
    by: str
    hosts: str
    client: str
    source: str
    concurrency: int


def run_matrix(options: MatrixOptions, form: str, output: str) -> None:
    """Print the matrix, or write it to a file; an empty one is no error."""
    _demand("--metric", options.metric, tuple(METRICS))
    _demand("--by", options.by, COLUMN_KINDS)
    _demand("--format", form, (TABLE, *RENDERERS, HTML))
    if output and form == TABLE:
        raise UsageFailure("--output is for other formats than the table", f"add --format {HTML}, md, csv or json")
    if form == HTML:
        from fleet_controller.cli.matrix_report_command import run_report

        run_report(options, output)
        return
    fetched = call(fetch(_request(options)))
    matrix = build_matrix(fetched.entries, METRICS[options.metric], options.depth, options.by)
    now_unix_ms = int(time.time() * 1000)
    if form != TABLE:
        _write(RENDERERS[form](matrix, now_unix_ms), output)
    elif not matrix.rows:
        print(f"no {options.metric} is known at depth {options.depth}", file=sys.stderr)
        print("  next: fleet bench MODEL --hosts PATTERN, or fleet results list", file=sys.stderr)
    else:
        _print(matrix, now_unix_ms)


def _write(text: str, output: str) -> None:
    if not output:
        sys.stdout.write(text)
        return
    write_output(output, text)
    print(f"the matrix is in {output}", file=sys.stderr)


def _print(matrix: Matrix, now_unix_ms: int) -> None:
    header, rows = table_cells(matrix, now_unix_ms)
    print_table(header, rows)
    print()
    for line in legend(matrix):
        print(line)


def _request(options: MatrixOptions) -> controller_pb2.ListResultsRequest:
    low, high = depth_range(options.depth)
    return controller_pb2.ListResultsRequest(
        pattern=options.hosts,
        models=options.models,
        clients=[options.client] if options.client else [],
        sources=known_sources((options.source,)) if options.source else [],
        test_kinds=[METRICS[options.metric].value],
        least_depth=low,
        most_depth=high,
        concurrency=options.concurrency,
        one_per_fingerprint=True,
    )


def _demand(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageFailure(f"{option} {value}: there is no such choice", f"one of: {', '.join(known)}")
