"""What `fleet results show` does."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from fleet_controller.cli.client import call, connected_controller
from fleet_controller.cli.output import print_json, print_table
from fleet_controller.cli.results_list_command import document
from fleet_controller.results.columns import FINGERPRINT_COLUMNS, DeviationKind, DeviceSample, Result, Run
from fleet_controller.results.device_spread import DEVICE_COLUMNS, device_spreads
from fleet_controller.results.figures import figure
from fleet_controller.results.matrix import Entry
from fleet_controller.service.results_wire import device_sample_of, entry_of, run_of
from fleet_proto.v1 import controller_pb2


def run_show(result_id: int, raw: bool, as_json: bool) -> None:
    """Print one row with its run."""
    details = call(_fetch(result_id))
    entry = Entry(*entry_of(details.row))
    run = run_of(details.run) if details.HasField("run") else None
    samples = [device_sample_of(sample) for sample in details.device_samples]
    if as_json:
        shown_run = run.model_dump(mode="json") if run else None
        devices = [sample.model_dump(mode="json") for sample in samples]
        print_json({**document(entry), "run": shown_run, "device_samples": devices})
    elif raw:
        sys.stdout.write(run.stdout if run else "")
        sys.stderr.write(run.stderr if run else "")
    else:
        _show(entry, run, samples)


async def _fetch(result_id: int) -> controller_pb2.ResultDetails:
    async with connected_controller() as controller:
        details: controller_pb2.ResultDetails = await controller.GetResult(
            controller_pb2.GetResultRequest(id=result_id)
        )
        return details


def _show(entry: Entry, run: Run | None, samples: Sequence[DeviceSample]) -> None:
    result = entry.result
    print(f"{result.test}  {figure(result)} {result.unit}  ({result.source.value})")
    print_table(("WHAT", "VALUE"), [(name, value) for name, value in _facts(result) if value])
    print(f"\nfingerprint {result.fingerprint_id}")
    columns = [(name, _text(getattr(result, name))) for name in FINGERPRINT_COLUMNS]
    print_table(("COLUMN", "VALUE"), [(name, value) for name, value in columns if value])
    if run is not None:
        for title, text in (("server", run.server_command), ("command", run.command)):
            if text:
                print(f"\n{title}\n  {text}")
        for title, text in (("stdout", run.stdout), ("stderr", run.stderr)):
            if text:
                print(f"\n{title}\n{text.rstrip()}")
    if samples:
        _show_devices(samples)


def _facts(result: Result) -> list[tuple[str, str]]:
    interval = ""
    if result.confidence_low is not None and result.confidence_high is not None:
        interval = f"{result.confidence_low:.2f} to {result.confidence_high:.2f} {result.unit}"
    finished = result.finished_unix_ms / 1000
    return [
        ("95 % interval of the mean", interval),
        ("repetitions", str(result.repetitions or "")),
        ("samples", ", ".join(f"{sample:g}" for sample in result.samples)),
        ("deviation", _deviation(result)),
        ("status", f"{result.status.value}{f': {result.cause}' if result.cause else ''}"),
        ("attempt", str(result.attempt) if result.attempt > 1 else ""),
        ("artifact", result.artifact),
        ("provenance", result.provenance),
        ("finished", datetime.fromtimestamp(finished, UTC).isoformat(timespec="seconds") if finished else ""),
        ("run", result.run_id),
        ("job", result.job_id),
        ("lease", result.lease_id),
    ]


def _deviation(result: Result) -> str:
    if result.deviation is None:
        return ""
    divisor = "n" if result.deviation_kind is DeviationKind.POPULATION else "n - 1"
    return f"{result.deviation:g} {result.unit} (divided by {divisor})"


def _text(value: Any) -> str:
    return "" if value in (None, "") else str(value)


def _show_devices(samples: Sequence[DeviceSample]) -> None:
    """Least, median and most of what each device did, attempt by attempt."""
    print(f"\n{len(samples)} device samples: least / median / most")
    rows = [
        (
            str(spread.attempt),
            str(spread.device_index),
            *spread.columns,
            ", ".join(spread.throttle_reasons) or "-",
            ", ".join(spread.foreign_processes) or "-",
        )
        for spread in device_spreads(samples)
    ]
    header = ("ATTEMPT", "DEVICE", *(title.upper() for title, _ in DEVICE_COLUMNS), "THROTTLED", "FOREIGN")
    print_table(header, rows)
