"""Cells of one host: those on other devices side by side, those of one device in the order of the plan."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest

from fleet_controller.benchmarking.cells import PlannedCell
from fleet_controller.benchmarking.devices import wall_seconds
from fleet_controller.domain.benches import BenchCell, CellAction
from fleet_controller.domain.events import HostEvent
from fleet_controller.operations import bench
from fleet_controller.operations.context import FleetContext
from fleet_controller.transport.errors import TransportError
from fleet_inventory.hosts import Host

HOST = Host(name="gpu2", address="gpu2")


def cell(model: str, *gpus: int) -> PlannedCell:
    return PlannedCell(shown=BenchCell(host="gpu2", model=model, action=CellAction.RUN, gpu_indices=gpus))


class Measuring:
    """Stands for the host: says what runs at once, and lets a cell end when it is told to."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.order: list[str] = []
        self.most = 0
        self.ends: dict[str, asyncio.Event] = {}
        self.changed = asyncio.Event()
        self.errors: dict[str, Exception] = {}

    async def __call__(self, context: Any, host: Host, one: PlannedCell, kept: list[Any]) -> AsyncGenerator[HostEvent]:
        name = one.shown.model
        self.running.append(name)
        self.order.append(name)
        self.changed.set()
        yield HostEvent(host=host.name, stage="bench", message=name)
        try:
            if name in self.errors:
                raise self.errors[name]
            await self.ends.setdefault(name, asyncio.Event()).wait()
        finally:
            self.running.remove(name)
            self.changed.set()

    async def until(self, *names: str) -> None:
        async with asyncio.timeout(10):
            while sorted(self.running) != sorted(names):
                self.changed.clear()
                await self.changed.wait()

    def end(self, *names: str) -> None:
        for name in names:
            self.ends.setdefault(name, asyncio.Event()).set()


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Measuring:
    measuring = Measuring()
    monkeypatch.setattr(bench, "measure_cell", measuring)
    return measuring


async def all_events(*cells: PlannedCell) -> list[HostEvent]:
    return [event async for event in bench._cells(cast(FleetContext, None), HOST, list(cells))]


async def test_each_device_has_its_own_turn(host: Measuring) -> None:
    cells = (cell("a", 0), cell("b", 1), cell("c", 0), cell("both", 0, 1), cell("d", 1))
    task = asyncio.create_task(all_events(*cells))
    await host.until("a", "b")
    host.end("a")
    await host.until("b", "c")
    host.end("b")
    await host.until("c")  # "d" waits behind "both", which wants its device, too
    host.end("c")
    await host.until("both")
    host.end("both")
    await host.until("d")
    host.end("d")
    events = await task
    assert events[-1].done and events[-1].message == "5 of 5 cells measured"
    assert events[0].message == "[1/5] a"


async def test_a_host_without_devices_measures_one_cell_at_a_time(host: Measuring) -> None:
    task = asyncio.create_task(all_events(cell("a"), cell("b"), cell("c", 0)))
    for name in ("a", "b", "c"):
        await host.until(name)
        host.end(name)
    await task
    assert host.order == ["a", "b", "c"]


async def test_a_cell_that_fails_costs_no_other_and_a_lost_host_those_that_wait(host: Measuring) -> None:
    host.errors["bad"] = ValueError("no")
    host.end("good")
    events = await all_events(cell("bad", 0), cell("good", 0))
    assert events[-1].message == "1 of 2 cells measured"
    host.errors["gone"] = TransportError("unreachable", "the host is gone", "look at it")
    events = await all_events(cell("gone", 0), cell("good", 0))
    assert events[-1].message == "0 of 1 cells measured" and host.order[-1] == "gone"


@pytest.mark.parametrize(
    ("cells", "seconds"),
    [
        ([], 0.0),
        ([((), 10.0), ((), 5.0)], 15.0),
        ([((0,), 10.0), ((1,), 5.0)], 10.0),
        ([((0,), 10.0), ((1,), 5.0), ((1,), 7.0)], 12.0),
        ([((0,), 10.0), ((1,), 5.0), ((0, 1), 1.0), ((1,), 2.0)], 13.0),
        ([((0,), 10.0), ((), 1.0), ((1,), 2.0)], 13.0),
    ],
)
def test_the_time_of_a_plan_counts_devices_side_by_side(cells: Any, seconds: float) -> None:
    assert wall_seconds(cells) == seconds
