"""What a host's calibration does to its predictions: the same cells predicted without its rows, and with them."""

from collections.abc import Iterator, Sequence

from fleet_controller.benchmarking.calibration import SUITE, is_calibration
from fleet_controller.benchmarking.cells import Identity
from fleet_controller.choosing.cells import cells_of, engine_on
from fleet_controller.choosing.work import Cell, Phase, work_of
from fleet_controller.domain.base import Frozen
from fleet_controller.domain.benches import BenchRequest
from fleet_controller.operations.choosing_knowledge import Knowledge, device_at
from fleet_controller.operations.problems import OperationError
from fleet_controller.results.columns import Result
from fleet_controller.results.store import Filter, select_results
from fleet_controller.state import StateDatabase
from fleet_inventory.base import CatalogError
from fleet_inventory.catalog import Catalog
from fleet_inventory.model_file import ArtifactFormat, Model

SHOWN_MODEL = "qwen3.5-4b"
SHOWN_TOKENS = {Phase.PREFILL: 512, Phase.DECODE: 64}


class Interval(Frozen):
    """Tokens/s with the 80 % interval."""

    value: float
    low: float
    high: float

    @property
    def factor(self) -> float:
        """How many times the low end the high end is."""
        return self.high / self.low


class Foretold(Frozen):
    """One cell's prediction without a host's calibration and with it."""

    model: str
    quantization: str
    test: str
    before: Interval
    after: Interval


def shown_models(request: BenchRequest, catalog: Catalog) -> tuple[str, ...]:
    """The models whose predictions are shown. Raises OperationError for one that is not in the catalog."""
    models = request.models or (SHOWN_MODEL,)
    try:
        for name in models:
            catalog.resolve(name)
    except CatalogError as error:
        raise OperationError(
            "no-model", str(error), "fleet models lists those whose sizes are known", usage=True
        ) from None
    return models


def foretold(
    database: StateDatabase, catalog: Catalog, models: Sequence[str], identity: Identity
) -> tuple[Foretold, ...]:
    """Predictions for the catalog's GGUF files of these models on the host of `identity`, which was calibrated.

    Empty where nothing can be said of the chip. Raises CatalogError for a model that is not in the catalog.
    """

    def of_this_host(row: Result) -> bool:
        return row.host == identity.host and is_calibration(row.model)

    # Adopted binaries tell their version only once they have run.
    wanted = Filter(host_pattern=identity.host, suites=(SUITE,))
    newest = next((row.backend_version for _, row in select_results(database, wanted, newest=1)), "")
    identity = identity.model_copy(update={"backend_version": newest or identity.backend_version})
    after = Knowledge(database, catalog)
    before = Knowledge(database, catalog, without=of_this_host)
    found = []
    for name in models:
        model, quantization = catalog.resolve(name)
        for cell, test in _cells(model, quantization or "", identity):
            found.append(
                Foretold(
                    model=model.name,
                    quantization=cell.quantization,
                    test=test,
                    before=_interval(before, cell),
                    after=_interval(after, cell),
                )
            )
    return tuple(found)


def _interval(knowledge: Knowledge, cell: Cell) -> Interval:
    told = knowledge.speed().predict(cell)
    return Interval(value=told.tokens_per_second, low=told.low, high=told.high)


def _cells(model: Model, quantization: str, identity: Identity) -> Iterator[tuple[Cell, str]]:
    """Decode and prefill of each GGUF file whose size is known, as a bench of the engine's own tool would run them."""
    device = device_at(identity.host, identity.chip)
    if device is None:
        return
    engine = engine_on(device, identity.backend, identity.backend_version, client=identity.client)
    work = work_of(model.name, model.architecture)
    for artifact in model.artifacts:
        wanted = not quantization or artifact.quantization.lower() == quantization.lower()
        if artifact.format is ArtifactFormat.GGUF and artifact.size_bytes and wanted:
            size = float(artifact.size_bytes)
            for phase, cell in cells_of(work, device, engine, artifact.quantization, size, SHOWN_TOKENS):
                yield cell, f"{phase.value}{cell.tokens}"
