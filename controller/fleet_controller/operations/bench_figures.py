"""What is known of the speed of a planned cell: its own runs first, then all that `fleet choose` goes by."""

from collections.abc import Sequence
from dataclasses import dataclass

from fleet_controller.benchmarking.cells import PlannedCell
from fleet_controller.choosing.bits import nominal_bits
from fleet_controller.choosing.cells import cells_of, engine_on
from fleet_controller.choosing.known import Machine, Wanted, energy_of, figure_of, speed_of
from fleet_controller.choosing.options import Certainty, Figure, Option
from fleet_controller.choosing.work import Cell, Phase
from fleet_controller.domain.plan import FitVerdict
from fleet_controller.domain.resolved import ModelArtifact, ResolvedModel
from fleet_controller.operations.choosing_knowledge import Knowledge, ModelFacts, device_at
from fleet_controller.operations.choosing_options import held_back
from fleet_controller.results.columns import Metric, Result, Status
from fleet_controller.results.pooling import pooled
from fleet_controller.results.store import Filter, select_results
from fleet_controller.state import StateDatabase
from fleet_inventory.chips import ChipKind

_METRICS = {Metric.PREFILL: "prefill", Metric.DECODE: "decode", Metric.ENERGY: "joules_per_token"}


@dataclass(frozen=True)
class Known:
    """A cell as an option with all figures that there are; its runs that are kept, and what one more takes."""

    option: Option
    runs: int
    run_seconds: float


def known_of(cell: PlannedCell, knowledge: Knowledge, database: StateDatabase) -> Known:
    """From the database as it is now."""
    identity = cell.identity
    assert identity is not None
    model = knowledge.facts_of(ResolvedModel(name=identity.model))
    weighed = cell.weights_bytes and model.parameters
    bits = cell.weights_bytes * 8 / (model.parameters or 1) if weighed else nominal_bits(identity.quantization)
    artifact = ModelArtifact(format="", quantization=identity.quantization, repository=identity.artifact)
    quality = knowledge.quality_of(artifact, model.names)
    option = Option(
        backend=identity.backend,
        quantization=identity.quantization,
        version=identity.backend_version,
        fit=FitVerdict.FITS,
        bits_per_weight=bits,
        quality=quality,
        held_back=held_back(bits, quality),
        repository=identity.artifact if not identity.quantization else "",
    )
    own = own_rows(cell, database)
    wanted = _wanted(cell, model)
    rows = knowledge.rows_of(wanted.models)
    figures: dict[str, Figure | None] = {
        "decode": speed_of(wanted, Metric.DECODE, rows, knowledge.speed),
        "prefill": speed_of(wanted, Metric.PREFILL, rows, knowledge.speed),
        "joules_per_token": energy_of(wanted, rows),
    }
    figures |= {
        name: figure for kind, name in _METRICS.items() if (figure := _own_figure(wanted, own, kind)) is not None
    }
    seconds = max(((row.finished_unix_ms - row.started_unix_ms) / 1000 for row in own), default=cell.run_seconds)
    return Known(option.model_copy(update=figures), len({row.run_id for row in own}), seconds)


def own_rows(cell: PlannedCell, database: StateDatabase) -> list[Result]:
    """Rows of the runs of this very cell."""
    prefix = f"bench-{cell.shown.cell_id}-r"
    runs = database.connection.execute(
        "SELECT DISTINCT run_id FROM results WHERE run_id LIKE ? AND status = ?", (f"{prefix}%", Status.MEASURED)
    ).fetchall()
    names = tuple(row[0] for row in runs)
    return [row for _, row in select_results(database, Filter(run_ids=names))] if names else []


def _own_figure(wanted: Wanted, own: Sequence[Result], kind: Metric) -> Figure | None:
    """What the runs of this very cell say, as `fleet choose` counts runs of one fingerprint."""
    found = [row for row in own if row.test_kind is kind and row.mean and row.depth == wanted.depth]
    return figure_of(wanted, pooled(found), Certainty.MEASURED) if found else None


def _wanted(cell: PlannedCell, model: ModelFacts) -> Wanted:
    identity = cell.identity
    assert identity is not None
    device = device_at(identity.host, identity.chip)
    is_cpu = device is not None and device.kind is ChipKind.CPU
    return Wanted(
        machine=Machine(host=identity.host, chip=identity.chip, device_count=identity.device_count, is_cpu=is_cpu),
        models=model.names,
        quantization=identity.quantization,
        backend=identity.backend,
        version=identity.backend_version,
        client=identity.client,
        weights_bytes=cell.weights_bytes or None,
        depth=identity.part.depths[0],
        cells=tuple(_speed_cells(cell, model)),
    )


def speed_cells(cell: PlannedCell, knowledge: Knowledge) -> list[tuple[Phase, Cell]]:
    """What a prediction needs; nothing where model or chip are not known."""
    assert cell.identity is not None
    return _speed_cells(cell, knowledge.facts_of(ResolvedModel(name=cell.identity.model)))


def _speed_cells(cell: PlannedCell, model: ModelFacts) -> list[tuple[Phase, Cell]]:
    identity = cell.identity
    assert identity is not None
    device = device_at(identity.host, identity.chip)
    if device is None or model.work is None or not cell.weights_bytes or identity.device_count > 1:
        return []
    engine = engine_on(device, identity.backend, identity.backend_version, client=identity.client, flags=identity.flags)
    tokens = {Phase.DECODE: identity.part.generation_tokens, Phase.PREFILL: identity.part.prompt_tokens}
    weights = float(cell.weights_bytes)
    depth = identity.part.depths[0]
    return list(cells_of(model.work, device, engine, identity.quantization, weights, tokens, depth))
