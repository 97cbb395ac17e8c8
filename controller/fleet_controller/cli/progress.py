"""Progress per host, on stderr: one live line a host on a terminal, plain lines when piped."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fleet_controller.cli.output import gibibytes

if TYPE_CHECKING:
    from fleet_proto.v1.controller_pb2 import HostEvent

PLAIN_PROGRESS_SECONDS = 5.0


class ProgressDisplay:
    """Shows events as they come, and remembers how each host ended."""

    def __init__(self, quiet: bool = False) -> None:
        self.finished: dict[str, HostEvent] = {}
        self._latest: dict[str, HostEvent] = {}
        self._said: dict[str, tuple[str, str]] = {}
        self._said_at: dict[str, float] = {}
        self._quiet = quiet
        self._live: Any = None

    def __enter__(self) -> "ProgressDisplay":
        if sys.stderr.isatty() and not self._quiet:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=8, transient=False)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(self._lines(), refresh=True)
            self._live.__exit__(kind, error, trace)

    def show(self, event: "HostEvent") -> None:
        self._latest[event.host] = event
        if event.done:
            self.finished[event.host] = event
        if self._live is not None:
            self._live.update(self._lines())
        elif not self._quiet:
            self._print_plain(event)

    def _print_plain(self, event: "HostEvent") -> None:
        """A line when stage or message changes; while only figures move, one every few seconds.

        How a host ended well is the command's own output; that it failed is worth a line at once.
        """
        if event.done and not failed(event):
            return
        said = (event.stage, event.message)
        now = time.monotonic()
        moving_only = self._said.get(event.host) == said
        if moving_only and not event.done and now - self._said_at[event.host] < PLAIN_PROGRESS_SECONDS:
            return
        self._said[event.host], self._said_at[event.host] = said, now
        print(f"{event.host}: {describe(event)}", file=sys.stderr, flush=True)

    def _lines(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        for host in sorted(self._latest):
            event = self._latest[host]
            style = ("red" if failed(event) else "green") if event.done else ""
            grid.add_row(
                Text(host, style="bold"), Text(describe(event), style=style, overflow="ellipsis", no_wrap=True)
            )
        return grid


def failed(event: "HostEvent") -> bool:
    return event.HasField("problem") or event.HasField("host_key")


def describe(event: "HostEvent") -> str:
    """One event as one line: "download: model.gguf 1.2 GiB of 5.0 GiB (24 %)"."""
    if event.HasField("problem"):
        return f"failed: {event.problem.message}"
    if event.HasField("host_key"):
        return "its host key is not known"
    text = f"{event.stage}: {event.message}" if event.stage and event.message else event.stage or event.message
    if event.HasField("done_units") and not event.done:
        text += f" {_units(event)}"
    return text


def _units(event: "HostEvent") -> str:
    done, total = event.done_units, event.total_units if event.HasField("total_units") else None
    if event.unit == "bytes":
        shown = gibibytes(done) + (f" of {gibibytes(total)}" if total is not None else "")
    else:
        shown = f"{done}" + (f" of {total}" if total is not None else "") + (f" {event.unit}" if event.unit else "")
    return f"{shown} ({100 * done // total} %)" if total else shown
