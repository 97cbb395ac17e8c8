"""Progress of a pull: one bar for all hosts together, and under it one line a host."""

from typing import TYPE_CHECKING, Any

from fleet_controller.cli.progress import ProgressDisplay, describe, failed

if TYPE_CHECKING:
    from fleet_proto.v1.controller_pb2 import HostEvent

ALL = "all"  # no host can have that name
BAR_CELLS = 30


class PullDisplay(ProgressDisplay):
    """What is said about the chain stays above the lines that move."""

    def show(self, event: "HostEvent") -> None:
        if self._live is not None and event.host == ALL and event.stage == "chain":
            self._live.console.print(f"[dim]{event.message}[/dim]", highlight=False)
            return
        super().show(event)

    def _lines(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        fleet = self._latest.get(ALL)
        if fleet is not None:
            grid.add_row(
                Text(ALL, style="bold"), Text(f"{bar(fleet)} {fleet.message}", overflow="ellipsis", no_wrap=True)
            )
        for host in sorted(self._latest):
            if host == ALL:
                continue
            event = self._latest[host]
            style = ("red" if failed(event) else "green") if event.done else ""
            grid.add_row(
                Text(host, style="bold"), Text(describe(event), style=style, overflow="ellipsis", no_wrap=True)
            )
        return grid


def bar(event: "HostEvent") -> str:
    """As "━━━━━━━━━━           33 %": how much of everything is verified on its host."""
    total = event.total_units
    share = 1.0 if event.done else min(1.0, event.done_units / total) if total else 0.0
    filled = int(BAR_CELLS * share)
    return "━" * filled + " " * (BAR_CELLS - filled) + f" {100 * share:3.0f} %"
