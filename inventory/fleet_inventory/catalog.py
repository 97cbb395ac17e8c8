"""The models that fleet knows by name: shipped descriptions, and those a user puts beside hosts.yaml."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from fleet_inventory.base import CatalogError, Frozen, InventoryError
from fleet_inventory.document import KeyPath, read_document
from fleet_inventory.model_file import (
    Architecture,
    Artifact,
    ArtifactFormat,
    BackendNotes,
    BackendSettings,
    Model,
    Sampling,
    Speculation,
)
from fleet_inventory.problems import listing, near, validate

__all__ = [
    "Architecture",
    "Artifact",
    "ArtifactFormat",
    "BackendNotes",
    "BackendSettings",
    "Catalog",
    "CatalogError",
    "Model",
    "Sampling",
    "Speculation",
    "load_catalog",
]

SHIPPED_FOLDER = Path(__file__).parent / "models"


class Catalog(Frozen):
    """Models in the order of their files, the shipped ones first."""

    models: tuple[Model, ...] = ()

    def resolve(self, text: str) -> tuple[Model, str | None]:
        """The model of `name` or `name:quantization`, and the quantization as the catalog spells it (None: not named).

        Name, alias and hub repository are compared without case. Raises CatalogError.
        """
        name, _, quantization = text.strip().partition(":")
        model = next((model for model in self.models if name.lower() in _names(model)), None)
        if model is None:
            raise CatalogError(self._unknown(name))
        return model, model.find_quantization(quantization) if quantization else None

    def _unknown(self, name: str) -> str:
        by_name = {spelling: model.name for model in self.models for spelling in _names(model)}
        wanted = re.sub(r"[^a-z0-9]", "", name.lower())
        similar = [by_name[spelling] for spelling in near(name, by_name)] + [
            model.name for model in self.models if wanted and wanted in re.sub(r"[^a-z0-9]", "", model.name)
        ]
        if similar:
            return f"no model '{name}' in the catalog, did you mean {' or '.join(dict.fromkeys(similar))}?"
        known = ", ".join(model.name for model in self.models)
        return f"no model '{name}' in the catalog; known: {known}; --repository takes any hub repository"


def load_catalog(extra_folders: Iterable[Path] = ()) -> Catalog:
    """The shipped models and those in `extra_folders` (a missing folder is fine); a later file replaces a name.

    Raises CatalogError, whose text lists every problem of every file.
    """
    models: dict[str, Model] = {}
    problems: list[str] = []
    for folder in (SHIPPED_FOLDER, *extra_folders):
        owners: dict[str, Path] = {}
        for path in sorted(folder.glob("*.yaml")) if folder.is_dir() else ():
            try:
                model = load_model(path)
            except InventoryError as error:
                problems.append(str(error))
                continue
            if model.name in owners:
                problems.append(f"{path}: name: '{model.name}' is already described in {owners[model.name]}")
            owners[model.name] = path
            models[model.name] = model
    problems += _clashes(models.values())
    if problems:
        raise CatalogError("\n".join(problems))
    return Catalog(models=tuple(models.values()))


def load_model(path: Path) -> Model:
    """One description. Raises InventoryError with every problem in it."""
    document = read_document(path, _verbatim)
    if document.data is None:
        raise InventoryError(f"{path}: the file is empty")
    value, problems = validate(Model, document)
    if problems or value is None:
        raise InventoryError(listing(problems))
    return cast(Model, value)


def _verbatim(path: KeyPath) -> bool:
    # Numbers that go to command lines stay exactly as people wrote them (0.00), and so do versions (1e10 is a commit).
    if path and path[-1] in ("memory_fraction", "version"):
        return True
    return len(path) > 1 and ("sampling" in path[:-1] or "environment" in path[:-1] or "arguments" in path[:-1])


def _names(model: Model) -> set[str]:
    return {name.lower() for name in (model.name, model.display_name, model.hub_repository, *model.aliases)}


def _clashes(models: Iterable[Model]) -> list[str]:
    owner: dict[str, str] = {}
    problems = []
    for model in models:
        for name in sorted(_names(model)):
            if owner.setdefault(name, model.name) != model.name:
                problems.append(f"the name '{name}' means both {owner[name]} and {model.name}; rename one")
    return problems
