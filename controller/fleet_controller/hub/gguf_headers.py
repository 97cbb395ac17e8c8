"""What the headers of a repository's GGUF files say, read by range before anything is downloaded."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from fleet_controller.domain.resolved import GGUF, ModelArtifact
from fleet_controller.domain.shape import ModelShape
from fleet_controller.domain.weights import WeightParts
from fleet_controller.hub import gguf
from fleet_controller.hub.errors import HubError
from fleet_controller.hub.gguf_shape import parts_of, shape_of

# The header of a model with a large vocabulary has some 10 MB: of so many quantizations all are read, of more the
# smallest only, and the others are taken for the same network in another size.
HEADERS_READ = 4
# Each part of a split model has a header of its own.
PARTS_READ = 8

Address = Callable[[ModelArtifact, str], str]


@lru_cache(maxsize=64)
def _read(urls: tuple[str, ...], token: str | None) -> tuple[ModelShape | None, WeightParts | None]:
    """Of all files of one artifact. A commit's files never change, so what was read once stays true."""
    headers = [gguf.read_url(url, token) for url in urls]
    return shape_of(gguf.whole(headers)), parts_of(headers)


def with_headers(
    artifacts: Sequence[ModelArtifact], address: Address, token: str | None, quantization: str = ""
) -> tuple[tuple[ModelArtifact, ...], str]:
    """The artifacts with their shapes and the parts of their weights, and why a header could not be read ("" = all
    could). Blocking. `quantization`: the one that was asked for, which alone is read then.
    """
    wanted = [item for item in artifacts if item.format == GGUF and item.files]
    if quantization and any(item.quantization.lower() == quantization.lower() for item in wanted):
        wanted = [item for item in wanted if item.quantization.lower() == quantization.lower()]
    if len(wanted) > HEADERS_READ:
        wanted = [min(wanted, key=lambda item: item.weights_bytes or 0)]
    if not wanted:
        return tuple(artifacts), ""
    with ThreadPoolExecutor(max_workers=HEADERS_READ) as threads:
        read = list(threads.map(lambda item: _of_artifact(item, address, token), wanted))
    by_place = {id(item): found for item, found in zip(wanted, read, strict=True)}
    problem = next((found for found in read if isinstance(found, str)), "")
    known = next((found for found in read if not isinstance(found, str)), None)
    return tuple(_with(item, by_place.get(id(item)), known) for item in artifacts), problem


def _of_artifact(
    artifact: ModelArtifact, address: Address, token: str | None
) -> tuple[ModelShape | None, WeightParts | None] | str:
    paths = sorted(file.path for file in artifact.files if file.path.endswith(".gguf") and file != artifact.projector)
    whole = len(paths) <= PARTS_READ
    try:
        shape, parts = _read(tuple(address(artifact, path) for path in (paths if whole else paths[:1])), token)
    except HubError as error:
        return f"the header of {paths[0]} could not be read: {error.message}"
    return shape, parts if whole else None


def _with(
    artifact: ModelArtifact,
    found: tuple[ModelShape | None, WeightParts | None] | str | None,
    known: tuple[ModelShape | None, WeightParts | None] | None,
) -> ModelArtifact:
    if artifact.format != GGUF or isinstance(found, str):
        return artifact
    if found is not None:
        return artifact.model_copy(update={"shape": found[0] or artifact.shape, "parts": found[1]})
    if known is None or known[1] is None or artifact.weights_bytes is None:
        return artifact
    projector = artifact.projector.size_bytes if artifact.projector is not None and artifact.sees else 0
    parts = known[1].scaled(artifact.weights_bytes - projector)
    return artifact.model_copy(update={"shape": artifact.shape or known[0], "parts": parts})
