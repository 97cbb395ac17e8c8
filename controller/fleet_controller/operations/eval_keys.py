"""Names of evaluations, and which of them are kept already."""

from fleet_controller.evaluating.asking import Asking, state_key
from fleet_controller.evaluating.dataset import Dataset
from fleet_controller.evaluating.protocols import Protocol
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.eval_model import Judged
from fleet_controller.results.quality import QualityRow, load_quality


def key_of(
    context: FleetContext, judged: Judged, protocol: Protocol, asking: Asking, dataset: Dataset, *, again: bool
) -> str:
    """The folder of answers on the host. `again` gives one that no kept run has used, the same until that is kept."""
    base = state_key(judged.identity, protocol, asking.settings, dataset.sha256)
    if not again:
        return base
    used = {str(row.raw.get("state_key", "")) for _, row in load_quality(context.database, metric="mmlu_pro")}
    ordinal = 0
    while (state_key(judged.identity, protocol, asking.settings, dataset.sha256, ordinal)) in used:
        ordinal += 1
    return state_key(judged.identity, protocol, asking.settings, dataset.sha256, ordinal)


def row_of_run(context: FleetContext, run_id: str) -> QualityRow | None:
    return next((row for _, row in load_quality(context.database) if row.run_id == run_id), None)
