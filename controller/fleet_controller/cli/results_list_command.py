"""What `fleet results list` does, and how every command here asks the controller for rows."""

import re
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from fleet_controller.cli.client import call, connected_controller
from fleet_controller.cli.failures import UsageFailure
from fleet_controller.cli.output import print_json, print_table
from fleet_controller.results.columns import DeviceSample, Run, Source
from fleet_controller.results.figures import age, disturbance, figure
from fleet_controller.results.matrix import Entry
from fleet_controller.service.results_wire import device_sample_of, entry_of, run_of
from fleet_proto.v1 import controller_pb2

COLUMNS = ("ID", "HOST", "MODEL", "QUANT", "BACKEND", "VERSION", "CLIENT", "TEST", "FIGURE", "UNIT", "SOURCE", "AGE")
AGE = re.compile(r"(\d+)\s*(min|h|d|w)\Z")
SECONDS = {"min": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True)
class ResultFilter:
    """The filters of `list` and `export`, as typed."""

    hosts: str = ""
    models: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    quantizations: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()
    since: str = ""
    sources: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        hosts: str,
        models: list[str] | None,
        backends: list[str] | None,
        quantizations: list[str] | None,
        suites: list[str] | None,
        since: str,
        sources: list[str] | None,
    ) -> "ResultFilter":
        """From what typer gives."""
        return cls(
            hosts=hosts,
            models=tuple(models or ()),
            backends=tuple(backends or ()),
            quantizations=tuple(quantizations or ()),
            suites=tuple(suites or ()),
            since=since,
            sources=tuple(sources or ()),
        )

    def request(self) -> controller_pb2.ListResultsRequest:
        """Raises UsageFailure."""
        return controller_pb2.ListResultsRequest(
            pattern=self.hosts,
            models=self.models,
            backends=self.backends,
            quantizations=self.quantizations,
            suites=self.suites,
            since_unix_ms=since_unix_ms(self.since) if self.since else 0,
            sources=known_sources(self.sources),
        )


@dataclass
class Fetched:
    """What the controller answered."""

    entries: list[Entry] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    device_samples: list[DeviceSample] = field(default_factory=list)
    left_out: int = 0


def run_list(wanted: ResultFilter, limit: int, as_json: bool) -> None:
    """Print the rows; none at all is no error."""
    request = wanted.request()
    request.newest = limit
    fetched = call(fetch(request))
    if as_json:
        print_json({"results": [document(entry) for entry in fetched.entries], "left_out": fetched.left_out})
        return
    if not fetched.entries:
        print("no results pass; next: fleet bench MODEL --hosts PATTERN", file=sys.stderr)
        return
    now = int(time.time() * 1000)
    print_table(COLUMNS, [_row(entry, now) for entry in fetched.entries])
    if fetched.left_out:
        print(f"{fetched.left_out} older ones are not shown; --limit 0 shows all", file=sys.stderr)


async def fetch(request: controller_pb2.ListResultsRequest) -> Fetched:
    """All pieces of a listing together."""
    fetched = Fetched()
    async with connected_controller() as controller:
        async for piece in controller.ListResults(request):
            fetched.entries += [Entry(*entry_of(row)) for row in piece.rows]
            fetched.runs += [run_of(run) for run in piece.runs]
            fetched.device_samples += [device_sample_of(sample) for sample in piece.device_samples]
            fetched.left_out += piece.left_out
    return fetched


def document(entry: Entry) -> dict[str, Any]:
    """One row for `--json`, with what follows from its columns."""
    result = entry.result
    return {
        "id": entry.result_id,
        "fingerprint_id": result.fingerprint_id,
        "test": result.test,
        "unit": result.unit,
        **result.model_dump(mode="json"),
    }


def _row(entry: Entry, now_unix_ms: int) -> tuple[str, ...]:
    result = entry.result
    return (
        str(entry.result_id),
        result.host,
        result.model,
        result.quantization or "-",
        result.backend or "-",
        result.backend_version or "-",
        result.client or "-",
        result.test,
        figure(result) if result.mean is not None else disturbance(result),
        result.unit,
        result.source.value,
        age(result.finished_unix_ms, now_unix_ms) or "-",
    )


def known_sources(sources: tuple[str, ...]) -> tuple[str, ...]:
    """Raises UsageFailure for a word that is none."""
    known = {source.value for source in Source}
    wrong = [source for source in sources if source.lower() not in known]
    if wrong:
        raise UsageFailure(f"--source {wrong[0]}: there is no such source", f"one of: {', '.join(sorted(known))}")
    return tuple(source.lower() for source in sources)


def since_unix_ms(text: str) -> int:
    """ "7d" before now, or a date or time of this machine's zone. Raises UsageFailure."""
    found = AGE.match(text.strip())
    if found:
        return int((time.time() - int(found[1]) * SECONDS[found[2]]) * 1000)
    try:
        return int(datetime.fromisoformat(text.strip()).astimezone().timestamp() * 1000)
    except ValueError:
        raise UsageFailure(
            f"--since {text}: neither a date nor an age", "such as 2026-11-24, 30min, 12h, 7d or 2w"
        ) from None
