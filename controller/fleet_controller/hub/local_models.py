"""Models that lie on the hosts, by path: what this machine can tell of them where it has them too."""

from pathlib import Path, PurePosixPath

from fleet_controller.domain.resolved import GGUF, MLX, SAFETENSORS, ModelArtifact, ResolvedModel
from fleet_controller.hub import config_json, gguf, gguf_files
from fleet_controller.hub.errors import NoFilesError
from fleet_controller.hub.gguf_shape import parts_of, shape_of
from fleet_controller.hub.names import quantization_of_file, service_name, stated_quantization


def model_of_path(path: str, quantization: str) -> ResolvedModel:
    """A file or folder on the hosts. Where this machine has it too, its size and header are taken from here."""
    plain = path.rstrip("/")
    pure = PurePosixPath(plain)
    name = service_name(gguf_files.without_part(pure.stem) if plain.endswith(".gguf") else pure.name)
    artifact = _local_gguf(plain) if plain.endswith(".gguf") else _local_folder(plain)
    stated = stated_quantization(plain) if artifact.format == GGUF else artifact.quantization
    if quantization and stated and quantization.upper() != stated.upper():
        raise NoFilesError(f"{plain} holds {stated}, not {quantization}", "leave --quant out, or name another file")
    artifact = artifact.model_copy(update={"quantization": quantization or artifact.quantization})
    shape = artifact.shape
    return ResolvedModel(
        name=name,
        display_name=plain,
        max_context=shape.context_length if shape else None,
        shape=shape,
        artifacts=(artifact,),
    )


def _local_gguf(path: str) -> ModelArtifact:
    parts = gguf_files.local_parts(path)
    artifact = ModelArtifact(format=GGUF, quantization=quantization_of_file(path), local_path=path, local_parts=parts)
    file = Path(path)
    if not file.is_absolute() or not file.exists():
        return artifact
    if file.is_dir():
        raise NoFilesError(f"{path} is a folder", "name a .gguf file")
    files = [Path(part) for part in parts or (path,)]
    gguf_files.demand_all_parts([str(part) for part in files if part.is_file()], "this machine")
    try:
        headers = [gguf.read_file(part) for part in files]
    except OSError as error:
        raise NoFilesError(f"{path} cannot be read here: {error.strerror}", "let your user read it") from error
    return artifact.model_copy(
        update={
            "weights_bytes": sum(part.stat().st_size for part in files),
            "shape": shape_of(gguf.whole(headers)),
            "parts": parts_of(headers),
            "projector": gguf_files.local_projector(file),
        }
    )


def _local_folder(path: str) -> ModelArtifact:
    folder = Path(path)
    if not folder.is_absolute() or not folder.exists():
        return ModelArtifact(format=SAFETENSORS, local_path=path)
    meant = "name a .gguf file, or a folder with config.json and .safetensors"
    try:
        text = (folder / "config.json").read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise NoFilesError(f"{path} is neither a .gguf file nor a folder with config.json", meant) from None
    except (OSError, UnicodeDecodeError) as error:
        raise NoFilesError(f"{path}/config.json cannot be read here: {error}", meant) from error
    config = config_json.parse_config(text)
    return ModelArtifact(
        format=MLX if config_json.is_mlx(config) else SAFETENSORS,
        quantization=config_json.quantization_of(config),
        local_path=path,
        weights_bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        shape=config_json.shape_of(config),
    )
