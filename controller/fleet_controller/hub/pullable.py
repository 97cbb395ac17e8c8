"""Which files a pull may mean, without reading any: a pull takes them from the hub once, and no header twice.

Blocking; callers use a thread.
"""

import urllib.error
import urllib.request
from collections.abc import Sequence
from urllib.parse import quote

from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.resolved import GGUF, LMSTUDIO, SAFETENSORS, ModelArtifact
from fleet_controller.domain.steps import ArtifactFile
from fleet_controller.hub.errors import NoFilesError
from fleet_controller.hub.gguf_files import is_projector
from fleet_controller.hub.metadata import DEFAULT_ENDPOINT, HubSnapshot, list_repository
from fleet_controller.hub.mirrors import data_endpoint, data_revision
from fleet_controller.hub.names import quantization_of_file
from fleet_controller.hub.resolve import resolve_with
from fleet_inventory.catalog import Catalog

PROBE_SECONDS = 15.0


def pullable_artifacts(
    request: DeployRequest, catalog: Catalog, endpoint: str, token: str | None
) -> tuple[ModelArtifact, ...]:
    """Every artifact that the request may mean, as one hub has them. Raises CatalogError, HubError and its kinds."""
    if request.repository:
        snapshot = list_repository(request.repository, endpoint, token)
        return _matching(_of_snapshot(snapshot), request.quantization, snapshot.repository)

    def lister(repository: str) -> HubSnapshot:
        return list_repository(repository, endpoint, token)

    found = resolve_with(request, catalog, lister, token)
    return tuple(artifact for artifact in found.artifacts if artifact.format != LMSTUDIO)


def _of_snapshot(snapshot: HubSnapshot) -> tuple[ModelArtifact, ...]:
    """A GGUF repository by quantization; of any other one everything."""
    groups: dict[str, list[ArtifactFile]] = {}
    for file in snapshot.files:
        name = file.path.rsplit("/", 1)[-1]
        if name.endswith(".gguf") and not is_projector(file.path) and not name.startswith("imatrix"):
            groups.setdefault(quantization_of_file(file.path), []).append(file)
    if groups:
        return tuple(_artifact(snapshot, GGUF, name, tuple(files)) for name, files in groups.items())
    return (_artifact(snapshot, SAFETENSORS, "", snapshot.select(())),)


def _artifact(
    snapshot: HubSnapshot, artifact_format: str, quantization: str, files: tuple[ArtifactFile, ...]
) -> ModelArtifact:
    return ModelArtifact(
        format=artifact_format,
        quantization=quantization,
        repository=snapshot.repository,
        revision=snapshot.revision,
        commit=snapshot.commit,
        endpoint=snapshot.endpoint,
        files=files,
    )


def _matching(artifacts: tuple[ModelArtifact, ...], quantization: str, repository: str) -> tuple[ModelArtifact, ...]:
    wanted = quantization.lower()
    found = tuple(one for one in artifacts if not wanted or not one.quantization or one.quantization.lower() == wanted)
    if not found:
        known = ", ".join(sorted(one.quantization for one in artifacts))
        raise NoFilesError(f"{repository} has no {quantization}", f"it has: {known}")
    return found


def first_with_data(
    endpoints: Sequence[str], artifact: ModelArtifact, token: str | None
) -> tuple[str | None, dict[str, str]]:
    """The first hub that hands out a byte of the largest file, and why those before it do not.

    Mirrors often carry a model's metadata without its files. A token goes to the hub that it is for only.
    """
    largest = max(artifact.files, key=lambda file: file.size_bytes)
    reasons: dict[str, str] = {}
    for endpoint in endpoints:
        base = data_endpoint(endpoint or DEFAULT_ENDPOINT)
        revision = data_revision(base) or artifact.commit
        url = f"{base}/{artifact.repository}/resolve/{revision}/{quote(largest.path)}"
        request = urllib.request.Request(url, headers={"Range": "bytes=0-0"})
        if token and endpoint == artifact.endpoint:
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS) as answer:
                total = (answer.headers.get("Content-Range") or "").rpartition("/")[2]
            if not total.isdigit() or int(total) == largest.size_bytes:
                return endpoint, reasons
            reasons[endpoint] = f"it has another version of {largest.path}, of {total} bytes"
        except urllib.error.HTTPError as error:
            reasons[endpoint] = f"it answers HTTP {error.code} for {largest.path}"
        except (OSError, ValueError) as error:
            reasons[endpoint] = f"it cannot be reached ({getattr(error, 'reason', error)})"
    return None, reasons
