"""What `fleet results compare` does."""

import sys
from typing import Any

from fleet_controller.cli.client import call
from fleet_controller.cli.failures import UsageFailure
from fleet_controller.cli.output import GREEN, RED, print_json, print_table
from fleet_controller.cli.results_list_command import fetch
from fleet_controller.results.columns import Metric
from fleet_controller.results.compare import (
    Comparison,
    Overall,
    Selector,
    SelectorError,
    Verdict,
    compare,
    overall,
    parse_selector,
)
from fleet_controller.results.figures import figure
from fleet_proto.v1 import controller_pb2

COLUMNS = ("MODEL", "QUANT", "TEST", "CLIENT", "A", "B", "UNIT", "B - A", "95 % INTERVAL", "B IS")
STYLES = {Verdict.FASTER.value: GREEN, Verdict.SLOWER.value: RED}


# What every tool measures, in one way or another.
COMMON_METRICS = (Metric.PREFILL, Metric.DECODE, Metric.PREFILL_AND_DECODE, Metric.TIME_TO_FIRST_TOKEN, Metric.ENERGY)


def run_compare(first: str, second: str, all_metrics: bool, as_json: bool) -> None:
    """Print each common cell and a line for each metric; no common cell is no error, and said."""
    selectors = (_selector("A", first), _selector("B", second))
    entries = call(fetch(_request(all_metrics))).entries
    cells = compare(entries, *selectors)
    if as_json:
        print_json({"a": first, "b": second, "cells": [_document(cell) for cell in cells], "overall": _overall(cells)})
    elif not cells:
        counts = [sum(selector.takes(entry.result) for entry in entries) for selector in selectors]
        print(f"no test is in both: A has {counts[0]} results, B has {counts[1]}", file=sys.stderr)
        print("  next: fleet results list shows what there is; what differs must be named in A or B", file=sys.stderr)
    else:
        print_table(COLUMNS, [_row(cell) for cell in cells], STYLES)
        print()
        for line in overall(cells):
            print(_sentence(line))


def _request(all_metrics: bool) -> controller_pb2.ListResultsRequest:
    kinds = () if all_metrics else COMMON_METRICS
    return controller_pb2.ListResultsRequest(one_per_fingerprint=True, test_kinds=[kind.value for kind in kinds])


def _selector(name: str, text: str) -> Selector:
    try:
        return parse_selector(text)
    except SelectorError as error:
        raise UsageFailure(f"{name}: {error}", "such as backend=llama.cpp,version=b8396,host=gpu1") from None


def _row(cell: Comparison) -> tuple[str, ...]:
    first = cell.first.result
    difference, interval = f"{cell.ratio - 1:+.1%}", "unknown: too few repetitions are known"
    if cell.difference is not None and first.mean:
        low, high = cell.difference.low / first.mean, cell.difference.high / first.mean
        interval = f"{low:+.1%} to {high:+.1%}"
    return (
        _both(first.model, cell.second.result.model),
        _both(first.quantization, cell.second.result.quantization),
        first.test,
        _both(first.client, cell.second.result.client),
        figure(first),
        figure(cell.second.result),
        first.unit,
        difference,
        interval,
        cell.verdict.value,
    )


def _both(first: str, second: str) -> str:
    """A's and, where it is another, B's."""
    return (first or "-") if first == second else f"{first or '-'} | {second or '-'}"


def _sentence(line: Overall) -> str:
    undecided = line.cells - line.faster - line.slower
    tests = "1 test" if line.cells == 1 else f"{line.cells} tests"
    return (
        f"{line.metric.value}: B is faster in {line.faster} and slower in {line.slower} of {tests}, "
        f"no difference shown in {undecided}; B / A is {line.ratio:.3f} (geometric mean)"
    )


def _document(cell: Comparison) -> dict[str, Any]:
    first, second = cell.first.result, cell.second.result
    found = cell.difference
    return {
        "model": first.model,
        "quantization": first.quantization,
        "test": first.test,
        "client": first.client,
        "unit": first.unit,
        "a": {"id": cell.first.result_id, "mean": first.mean, "deviation": first.deviation},
        "b": {"id": cell.second.result_id, "mean": second.mean, "deviation": second.deviation},
        "ratio": cell.ratio,
        "difference": found.difference if found else None,
        "interval": [found.low, found.high] if found else None,
        "degrees_of_freedom": found.degrees_of_freedom if found else None,
        "verdict": cell.verdict.value,
    }


def _overall(cells: list[Comparison]) -> list[dict[str, Any]]:
    return [
        {
            "metric": line.metric.value,
            "cells": line.cells,
            "faster": line.faster,
            "slower": line.slower,
            "no_difference_shown": line.cells - line.faster - line.slower,
            "ratio": line.ratio,
        }
        for line in overall(cells)
    ]
