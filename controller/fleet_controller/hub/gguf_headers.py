"""What the headers of a repository's GGUF files say, read by range before anything is downloaded.

A header has some 10 MB, nearly all of it a vocabulary that all quantizations of a repository share: of one file it is
read whole, of the others only the table of tensors behind it (gguf_tables.py), some 0.2 MB each.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

from fleet_controller.domain.resolved import GGUF, ModelArtifact
from fleet_controller.domain.shape import ModelShape
from fleet_controller.domain.weights import WeightParts
from fleet_controller.hub import gguf
from fleet_controller.hub.errors import GgufError, HubError
from fleet_controller.hub.gguf_shape import parts_of, shape_of
from fleet_controller.hub.gguf_tables import header_like

READ_AT_ONCE = 8
# The later parts of a split model have no vocabulary.
LATER_PART_BYTES = 256 << 10

Address = Callable[[ModelArtifact, str], str]


class Told(NamedTuple):
    """What the headers of one artifact tell; `shape` None: too little, `parts` None: tensors of an unknown type."""

    shape: ModelShape | None
    parts: WeightParts | None


@lru_cache(maxsize=8)
def _headers(urls: tuple[str, ...], token: str | None) -> tuple[gguf.GgufHeader, ...]:
    """Of all files of one artifact, whole. A commit's files never change, so what was read once stays true."""
    first, *later = urls
    whole = gguf.read_url(first, token)
    return whole, *(gguf.read_url(url, token, first_piece_bytes=LATER_PART_BYTES) for url in later)


@lru_cache(maxsize=256)
def _told(urls: tuple[str, ...], token: str | None, like: str) -> Told:
    """`like`: a file of the same repository whose header was read, "" = none yet."""
    near = header_like(_headers((like,), token)[0], urls[0], token) if like and len(urls) == 1 else None
    headers = (near,) if near is not None else _headers(urls, token)
    return Told(shape_of(gguf.whole(headers)), parts_of(headers))


def with_headers(
    artifacts: Sequence[ModelArtifact], address: Address, token: str | None, quantization: str = ""
) -> tuple[tuple[ModelArtifact, ...], str]:
    """The artifacts with their shapes and the parts of their weights, and what is estimated since a header could not be
    read ("" = nothing). Blocking. `quantization`: the one that was asked for, which alone is read then.
    """
    wanted = [item for item in artifacts if item.format == GGUF and item.files]
    if quantization and any(item.quantization.lower() == quantization.lower() for item in wanted):
        wanted = [item for item in wanted if item.quantization.lower() == quantization.lower()]
    urls = {id(item): tuple(address(item, path) for path in _paths(item)) for item in wanted}
    found = _read(urls, token)
    known = next((told for told in found.values() if isinstance(told, Told)), None)
    return tuple(_with(item, found.get(id(item)), known) for item in artifacts), _estimated(wanted, found)


def _paths(artifact: ModelArtifact) -> list[str]:
    return sorted(file.path for file in artifact.files if file.path.endswith(".gguf") and file != artifact.projector)


def _read(urls: Mapping[int, tuple[str, ...]], token: str | None) -> dict[int, Told | HubError]:
    """One file's header first, a model in one file where there is one; then all others at once, as like it."""
    left = sorted(urls, key=lambda key: len(urls[key]))
    found: dict[int, Told | HubError] = {}
    like = ""
    while left and not like:
        first = left.pop(0)
        found[first] = answer = _tried(urls[first], token, "")
        if isinstance(answer, Told):
            like = urls[first][0] if len(urls[first]) == 1 else ""
            break
        if not isinstance(answer, GgufError):  # no file of this hub can be read
            return found | dict.fromkeys(left, answer)
    with ThreadPoolExecutor(max_workers=READ_AT_ONCE) as threads:
        answers = threads.map(lambda key: _tried(urls[key], token, like), left)
        return found | dict(zip(left, answers, strict=True))


def _tried(urls: tuple[str, ...], token: str | None, like: str) -> Told | HubError:
    try:
        return _told(urls, token, like)
    except HubError as error:
        return error


def _estimated(wanted: Sequence[ModelArtifact], found: Mapping[int, Told | HubError]) -> str:
    failed = [(item, error) for item in wanted if isinstance(error := found.get(id(item)), HubError)]
    if not failed:
        return ""
    names = ", ".join(item.quantization or item.format for item, _ in failed)
    why = f"the header of {_paths(failed[0][0])[0]} could not be read: {failed[0][1].message}"
    return f"memory of {names} is an estimate from the size of their files, since {why}"


def _with(artifact: ModelArtifact, found: Told | HubError | None, known: Told | None) -> ModelArtifact:
    """What its own header tells, else the network of another one in the size of its own files."""
    if artifact.format != GGUF:
        return artifact
    if isinstance(found, Told):
        return artifact.model_copy(update={"shape": found.shape or artifact.shape, "parts": found.parts})
    if known is None or known.parts is None or artifact.weights_bytes is None:
        return artifact
    projector = artifact.projector.size_bytes if artifact.projector is not None and artifact.sees else 0
    parts = known.parts.scaled(artifact.weights_bytes - projector)
    return artifact.model_copy(update={"shape": artifact.shape or known.shape, "parts": parts})
