"""A bench's plan is run as what it was made for."""

from collections.abc import AsyncGenerator

from fleet_controller.domain.benches import BenchPurpose
from fleet_controller.domain.events import HostEvent
from fleet_controller.operations.bench import bench
from fleet_controller.operations.bench_deciding import decide_by_bench
from fleet_controller.operations.bench_plan import load_bench_plan
from fleet_controller.operations.calibrate import calibrate
from fleet_controller.operations.context import FleetContext

_RUNS = {BenchPurpose.DECIDE: decide_by_bench, BenchPurpose.CALIBRATE: calibrate}


async def run_bench(context: FleetContext, plan_id: str) -> AsyncGenerator[HostEvent]:
    """Raises OperationError where the plan is not known here."""
    run = _RUNS.get(load_bench_plan(context, plan_id).request.purpose, bench)
    async for event in run(context, plan_id):
        yield event
