"""A model after the catalog and the hub have spoken: every artifact that could be served, with its exact files."""

from fleet_controller.domain.base import EnvironmentVariable, Frozen
from fleet_controller.domain.shape import ModelShape
from fleet_controller.domain.steps import ArtifactFile

GGUF = "gguf"
MLX = "mlx"
SAFETENSORS = "safetensors"


class ModelArtifact(Frozen):
    """One quantization of a model in one format: files of a hub repository at a commit, or a path on the hosts.

    `local_path` is a path to a .gguf file or to a folder with config.json, absolute or "./..." within a host's model
    folder; hub fields are empty then.
    `weights_bytes` is None where nobody has seen the file yet.
    """

    format: str
    quantization: str = ""
    repository: str = ""
    revision: str = "main"
    commit: str = ""
    endpoint: str = ""
    files: tuple[ArtifactFile, ...] = ()
    local_path: str = ""
    weights_bytes: int | None = None
    shape: ModelShape | None = None

    def main_file(self) -> str:
        """The file that a GGUF server is given: the first part of a split model; projectors are not models.

        Raises ValueError where there is no GGUF file.
        """
        names = sorted(file.path for file in self.files if file.path.endswith(".gguf"))
        models = [name for name in names if not name.rsplit("/", 1)[-1].startswith("mmproj")]
        if not models:
            raise ValueError(f"{self.repository or self.local_path} has no GGUF file for {self.quantization}")
        return models[0]

    def download_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class BackendOverrides(Frozen):
    """What the catalog says about one model on one backend, for the version and the speculation that were asked for.

    `speculative` are arguments too, kept apart because a backend has a place for them; empty without speculation.
    `requirements` must be installed with the backend, whatever version of them it asks for itself.
    """

    arguments: tuple[str, ...] = ()
    environment: tuple[EnvironmentVariable, ...] = ()
    version: str = ""
    reasoning_parser: str = ""
    tool_call_parser: str = ""
    memory_fraction: str = ""
    speculative: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    known_problems: tuple[str, ...] = ()


class ResolvedModel(Frozen):
    """`name` becomes the service's name; `sampling` are (option, text) pairs in the order of the command line."""

    name: str
    display_name: str = ""
    max_context: int | None = None
    sampling: tuple[tuple[str, str], ...] = ()
    shape: ModelShape | None = None
    artifacts: tuple[ModelArtifact, ...] = ()
    overrides: tuple[tuple[str, BackendOverrides], ...] = ()
    warnings: tuple[str, ...] = ()

    def overrides_for(self, backend: str) -> BackendOverrides:
        return next((found for name, found in self.overrides if name == backend), BackendOverrides())
