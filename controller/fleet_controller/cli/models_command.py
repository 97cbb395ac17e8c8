"""What `fleet models` does."""

from fleet_controller.cli.failures import UsageFailure
from fleet_controller.cli.output import print_json, print_table
from fleet_inventory.base import CatalogError
from fleet_inventory.catalog import Model, load_catalog
from fleet_inventory.paths import models_folder

COLUMNS = ("MODEL", "PARAMETERS", "CONTEXT", "FORMAT", "QUANTIZATIONS", "REPOSITORY")


def run_models(as_json: bool) -> None:
    """Print the catalog: the shipped models and the user's own."""
    try:
        catalog = load_catalog([models_folder()])
    except CatalogError as error:
        raise UsageFailure(str(error)) from None
    if as_json:
        print_json({"models": [model.model_dump(mode="json") for model in catalog.models]})
    else:
        print_table(COLUMNS, [row for model in catalog.models for row in _rows(model)])


def _rows(model: Model) -> list[tuple[str, ...]]:
    """One row per format and repository."""
    groups: dict[tuple[str, str], list[str]] = {}
    for artifact in model.artifacts:
        groups.setdefault((artifact.format.value, artifact.repository), []).append(artifact.quantization)
    rows: list[tuple[str, ...]] = []
    for number, ((form, repository), quantizations) in enumerate(groups.items()):
        first = number == 0
        rows.append(
            (
                model.name if first else "",
                _billions(model) if first else "",
                f"{model.max_context:,}" if first else "",
                form,
                ", ".join(quantizations),
                repository,
            )
        )
    return rows


def _billions(model: Model) -> str:
    label = model.architecture.active_parameters_label
    total = f"{model.architecture.parameters / 1e9:.1f}B"
    return total if label == "dense" else f"{total} ({label})"
