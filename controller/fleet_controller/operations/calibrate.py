"""`fleet calibrate`: benches of models that the hosts make up, and what they do to the predictions there."""

import json
from collections.abc import AsyncGenerator

from fleet_controller.benchmarking.cells import PlannedCell
from fleet_controller.domain.events import HostEvent
from fleet_controller.operations.bench import bench
from fleet_controller.operations.bench_plan import load_bench_plan
from fleet_controller.operations.calibrate_predictions import Foretold, foretold, shown_models
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.threads import in_daemon_thread
from fleet_inventory.catalog import Catalog, load_catalog


async def calibrate(context: FleetContext, plan_id: str) -> AsyncGenerator[HostEvent]:
    """As a bench of the plan; each host ends with one `done` event that has its predictions before and after.

    Hosts where nothing is left to measure end at once. Raises OperationError for a model that nobody knows.
    """
    plan = load_bench_plan(context, plan_id)
    catalog = load_catalog((context.settings.hosts_file.parent / "models",))
    models = shown_models(plan.request, catalog)
    first = {cell.shown.host: cell for cell in reversed(plan.cells) if cell.identity is not None}
    ended: set[str] = set()
    async for event in bench(context, plan_id):
        if event.done:
            ended.add(event.host)
            event = await _with_predictions(context, catalog, models, first.get(event.host), event)
        yield event
    for name in first.keys() - ended:
        end = HostEvent(host=name, stage="bench", message="calibrated already", done=True)
        yield await _with_predictions(context, catalog, models, first[name], end)


async def _with_predictions(
    context: FleetContext, catalog: Catalog, models: tuple[str, ...], cell: PlannedCell | None, event: HostEvent
) -> HostEvent:
    told: tuple[Foretold, ...] = ()
    if cell is not None and cell.identity is not None:
        identity = cell.identity
        told = await in_daemon_thread(lambda: foretold(context.database, catalog, models, identity))
    result = json.loads(event.result_json) if event.result_json else {"cells": []}
    result["predictions"] = [one.model_dump(mode="json") for one in told]
    return event.model_copy(update={"result_json": json.dumps(result)})
