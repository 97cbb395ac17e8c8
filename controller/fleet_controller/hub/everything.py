"""All artifacts that a model is known to have, in every format, for comparing them before anything is fetched.

What the hub does not tell now is taken from the catalog: its published sizes are enough to judge by, not to deploy.
"""

from fleet_controller.choosing.bits import nominal_bits
from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.resolved import ModelArtifact, ResolvedModel
from fleet_controller.hub.errors import HubError, HubUnreachableError
from fleet_controller.hub.gguf_headers import with_headers
from fleet_controller.hub.metadata import HubSnapshot, list_repository
from fleet_controller.hub.resolve import Lister, file_address, is_path, of_catalog_model, of_entry, resolve_with
from fleet_inventory.catalog import Artifact, Catalog


def resolve_everything(
    request: DeployRequest, catalog: Catalog, endpoint: str = "", token: str | None = None
) -> ResolvedModel:
    """As `resolve_model`, with every format and quantization of a model of the catalog."""

    def lister(repository: str) -> HubSnapshot:
        return list_repository(repository, endpoint, token)

    found = everything_of(request, catalog, lister, token)
    if request.repository:
        return found  # its headers are read
    artifacts, estimated = with_headers(found.artifacts, file_address, token)
    warnings = (*found.warnings, estimated) if estimated else found.warnings
    return found.model_copy(update={"artifacts": artifacts, "warnings": warnings})


def everything_of(request: DeployRequest, catalog: Catalog, lister: Lister, token: str | None = None) -> ResolvedModel:
    """resolve_everything with another source of listings. Raises CatalogError, HubError and PlanProblem.

    A repository that is not there or may not be read leaves its artifacts out, and a warning; where no hub answers, the
    catalog's sizes stand in for what it has. Without either a model has no artifacts.
    """
    if request.repository or is_path(request.model):
        return resolve_with(request, catalog, lister, token)
    model, _ = catalog.resolve(request.model)
    listings = _Listings(lister)
    artifacts: list[ModelArtifact] = []
    warnings: list[str] = []
    for entry in model.artifacts:
        try:
            artifacts.append(of_entry(entry, listings))
        except HubUnreachableError:
            if (known := _as_published(entry, model.architecture.parameters)) is not None:
                artifacts.append(known)
        except HubError as error:
            warnings.append(f"{entry.quantization} ({entry.format.value}) is left out: {error.message}")
    if listings.unreachable:
        warnings.append(
            "sizes are those of the catalog or of bits a weight, since the hub did not answer: "
            f"{listings.unreachable.message}"
        )
    return of_catalog_model(model, request, tuple(artifacts), tuple(warnings))


class _Listings:
    """Each repository is asked for once, and a hub that does not answer is not asked again."""

    def __init__(self, lister: Lister) -> None:
        self._lister = lister
        self._known: dict[str, HubSnapshot | HubError] = {}
        self.unreachable: HubUnreachableError | None = None

    def __call__(self, repository: str) -> HubSnapshot:
        if self.unreachable is not None:
            raise self.unreachable
        if repository not in self._known:
            self._known[repository] = self._asked(repository)
        found = self._known[repository]
        if isinstance(found, HubError):
            raise found
        return found

    def _asked(self, repository: str) -> HubSnapshot | HubError:
        try:
            return self._lister(repository)
        except HubUnreachableError as error:
            self.unreachable = error
            return error
        except HubError as error:
            return error


def _as_published(entry: Artifact, parameters: int) -> ModelArtifact | None:
    """With the size that was published, else what its bits a weight come to; None where neither is known."""
    size = entry.size_bytes or int(parameters * nominal_bits(entry.quantization) / 8)
    if not size:
        return None
    return ModelArtifact(
        format=entry.format.value, quantization=entry.quantization, repository=entry.repository, weights_bytes=size
    )
