"""What is known of a model's speed and quality: rows of this fleet, reference rows, and predictions fitted to both.

The predictions are fitted at the first question that needs one, once for the same rows.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property

from fleet_controller.benchmarking.calibration import calibration_work
from fleet_controller.choosing.options import Quality
from fleet_controller.choosing.reference import device_named, own_speed, reference_speeds
from fleet_controller.choosing.speculation import Pair, pairs_of
from fleet_controller.choosing.speed import SpeedModel
from fleet_controller.choosing.work import DeviceFacts, MeasuredSpeed, ModelWork, work_of
from fleet_controller.choosing.work_of_headers import work_of_artifacts
from fleet_controller.domain.resolved import ModelArtifact, ResolvedModel
from fleet_controller.operations.choosing_fit import SOLVED_FILE, fitted
from fleet_controller.results.columns import Metric, Result
from fleet_controller.results.pooling import pooled_by_fingerprint
from fleet_controller.results.quality import QualityRow, load_quality, quality_for
from fleet_controller.results.reference import sync_reference
from fleet_controller.results.store import Filter, select_results
from fleet_controller.state import StateDatabase
from fleet_inventory.base import CatalogError
from fleet_inventory.catalog import Catalog, Model
from fleet_inventory.chips import ChipKind
from fleet_inventory.speed_reference import SpeedModelShape, load_speed_figures, load_speed_models

SPEED_KINDS = (Metric.DECODE.value, Metric.PREFILL.value)
CHOOSING_KINDS = (*SPEED_KINDS, Metric.ENERGY.value)


@dataclass(frozen=True)
class ModelFacts:
    """What speeds of a model depend on. `names` are those that results may have for it, in lower case.

    `work` and `parameters` are None where nobody knows the architecture.
    """

    names: frozenset[str]
    work: ModelWork | None = None
    parameters: float | None = None


class Knowledge:
    """Of one controller's database and catalog, at one moment. Each table is read once.

    `without` leaves rows out of what predictions are fitted to.
    """

    def __init__(
        self, database: StateDatabase, catalog: Catalog, without: Callable[[Result], bool] | None = None
    ) -> None:
        self._without = without
        self._database = database
        self._catalog = catalog
        self._works: dict[str, ModelFacts] = {}
        self._rows: dict[frozenset[str], tuple[Result, ...]] = {}

    def facts_of(self, resolved: ResolvedModel) -> ModelFacts:
        """By the name that is shown, since a service may be called as its user likes."""
        found = self._facts_of(resolved.display_name or resolved.name)
        if found.work is not None:
            return found
        work = work_of_artifacts(resolved)
        names = found.names | {resolved.name.lower()}
        return replace(found, names=names, work=work, parameters=work.parameters if work else None)

    def _facts_of(self, name: str) -> ModelFacts:
        key = name.lower()
        if key not in self._works:
            self._works[key] = _facts(key, self._in_catalog(key))
        return self._works[key]

    def _in_catalog(self, name: str) -> Model | None:
        try:
            return self._catalog.resolve(name)[0]
        except CatalogError:
            return None

    def rows_of(self, names: frozenset[str]) -> tuple[Result, ...]:
        """One row for each fingerprint of a model, of its newest runs together."""
        if names not in self._rows:
            wanted = Filter(models=tuple(sorted(names)), test_kinds=CHOOSING_KINDS)
            found = select_results(self._synced, wanted)
            self._rows[names] = tuple(pooled_by_fingerprint(row for _, row in found))
        return self._rows[names]

    @cached_property
    def _synced(self) -> StateDatabase:
        sync_reference(self._database)
        return self._database

    @cached_property
    def _quality_rows(self) -> tuple[QualityRow, ...]:
        return tuple(row for _, row in load_quality(self._database))

    def quality_of(self, artifact: ModelArtifact, names: frozenset[str]) -> Quality | None:
        """The score of an artifact on the scale that most artifacts of the model have."""
        mine = [row for row in self._quality_rows if row.model.lower() in names]
        digest = file_hash(artifact) or _hash_among(mine, artifact)
        return quality_for(mine, digest) if digest else None

    @cached_property
    def speculation(self) -> tuple[Pair, ...]:
        """What was measured with speculation and without."""
        return pairs_of(self._measured)

    def speed(self) -> SpeedModel:
        """The predictions, fitted once for the same rows."""
        return self._speed

    @cached_property
    def _speed(self) -> SpeedModel:
        return fitted(self._measured, self._database.path.parent / SOLVED_FILE)

    @cached_property
    def _measured(self) -> tuple[MeasuredSpeed, ...]:
        wanted = Filter(test_kinds=SPEED_KINDS, concurrency=1)
        rows = (row for _, row in select_results(self._synced, wanted, one_per_fingerprint=True))
        rows = (row for row in rows if self._without is None or not self._without(row))
        return (*_reference(), *self._own(one_of_each(rows)))

    def _own(self, rows: Iterable[Result]) -> Iterable[MeasuredSpeed]:
        for row in rows:
            work, device = self._facts_of(row.model).work if row.model else None, device_at(row.host, row.chip)
            if work is not None and device is not None and row.artifact_bytes:
                found = own_speed(row, work, device, float(row.artifact_bytes))
                if found is not None:
                    yield found


def device_at(host: str, chip: str, gpu_cores: int | None = None) -> DeviceFacts | None:
    """The device as predictions know it. A CPU is its host's own: a processor's name does not tell how many cores of
    it a machine has, nor how many channels of memory."""
    device = device_named(chip, gpu_cores)
    if device is None or device.kind is not ChipKind.CPU:
        return device
    return device.model_copy(update={"name": f"{device.name} of {host}"})


def one_of_each(rows: Iterable[Result]) -> list[Result]:
    """Of many hosts with one chip, versions and test, the row in the middle: equal machines say the same."""
    groups: dict[tuple[object, ...], list[Result]] = {}
    for row in rows:
        device = device_at(row.host, row.chip)
        key = (
            device.name if device else row.chip,
            row.device_count,
            row.model.lower(),
            row.quantization,
            row.backend,
            row.backend_version,
        )
        groups.setdefault((*key, row.flags, row.client, row.test, row.artifact_bytes), []).append(row)
    return [_middle(group) for group in groups.values()]


def _middle(rows: list[Result]) -> Result:
    ordered = sorted(rows, key=lambda row: (row.mean or 0.0, row.run_id))
    return ordered[len(ordered) // 2]


def file_hash(artifact: ModelArtifact) -> str:
    """The sha256 of a model that is one file, as results have it; "" for others."""
    models = [file for file in artifact.files if artifact.projector is None or file.path != artifact.projector.path]
    return models[0].sha256 if len(models) == 1 else ""


def _hash_among(rows: Iterable[QualityRow], artifact: ModelArtifact) -> str:
    """Folders have a hash that only their host knows: the row that was made of this repository and quantization."""
    same = [
        row
        for row in rows
        if row.quantization.lower() == artifact.quantization.lower()
        and row.repository in ("", artifact.repository or artifact.local_path)
    ]
    return max(same, key=lambda row: row.taken_unix_ms).artifact_hash if same else ""


def _facts(name: str, model: Model | None) -> ModelFacts:
    if model is None:
        shape = _shapes().get(name)
        work = ModelWork.model_validate(shape.model_dump()) if shape else calibration_work(name)
        return ModelFacts(frozenset({name}), work, work.parameters if work else None)
    spellings = (model.name, model.display_name, model.hub_repository, *model.aliases)
    names = frozenset({one.lower() for one in spellings} | {model.hub_repository.rsplit("/", 1)[-1].lower()})
    work = work_of(model.name, model.architecture)
    return ModelFacts(names, work, float(model.architecture.parameters))


@cache
def _shapes() -> Mapping[str, SpeedModelShape]:
    return load_speed_models()


@cache
def _reference() -> tuple[MeasuredSpeed, ...]:
    return reference_speeds(load_speed_figures(), _shapes())
