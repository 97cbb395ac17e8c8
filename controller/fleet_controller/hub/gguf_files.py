"""Which GGUF files belong together: the parts of a split model, and the multimodal projector that goes with it."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from fleet_controller.domain.steps import ArtifactFile
from fleet_controller.hub.errors import NoFilesError
from fleet_controller.hub.metadata import split_parts

# The projectors of one repository differ in their precision only; 16 bits are what the field serves with.
_PROJECTOR_PREFERENCE = ("f16", "bf16", "q8_0", "f32")


def is_projector(path: str) -> bool:
    return PurePosixPath(path).name.startswith("mmproj") and path.endswith(".gguf")


def choose_projector(files: Sequence[ArtifactFile]) -> ArtifactFile | None:
    """The projector among a repository's files: with 16 bits where there are several."""

    def place(file: ArtifactFile) -> tuple[int, str]:
        words = re.split(r"[-_.]", PurePosixPath(file.path).stem.lower())
        known = (at for at, word in enumerate(_PROJECTOR_PREFERENCE) if word in words or word.replace("_", "") in words)
        return next(known, len(_PROJECTOR_PREFERENCE)), file.path

    return min((file for file in files if is_projector(file.path)), key=place, default=None)


def demand_all_parts(paths: Sequence[str], where: str) -> None:
    """Raises NoFilesError where a part of a split model is missing among the paths."""
    missing = dict.fromkeys(part for path in paths for part in split_parts(path) if part not in paths)
    if missing:
        names = ", ".join(PurePosixPath(part).name for part in missing)
        raise NoFilesError(f"{where} lacks {names}", "wait until it is complete, or choose another quantization")


def local_parts(path: str) -> tuple[str, ...]:
    """Every part of the split model that begins with `path`; () for a model in one file.

    llama-gguf-split writes tiny-00001-of-00003.gguf; a server is given the first part and finds the others itself.
    Raises NoFilesError for a path to another part than the first.
    """
    parts = split_parts(path)
    if parts and path != parts[0]:
        raise NoFilesError(f"{path} is a later part of a split model", f"name the first part: {parts[0]}")
    return parts


def without_part(stem: str) -> str:
    """The name of a model without the number of its part: tiny-F16 of tiny-F16-00001-of-00003."""
    return re.sub(r"-\d{5}-of-\d{5}$", "", stem)


def local_projector(model: Path) -> ArtifactFile | None:
    """The projector that lies beside a model on this machine."""
    beside = (ArtifactFile(path=str(p), size_bytes=p.stat().st_size) for p in model.parent.glob("mmproj*.gguf"))
    return choose_projector(tuple(beside))
