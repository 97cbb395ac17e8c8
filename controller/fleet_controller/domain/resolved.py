"""A model after the catalog and the hub have spoken: every artifact that could be served, with its exact files."""

from fleet_controller.domain.base import EnvironmentVariable, Frozen
from fleet_controller.domain.shape import ModelShape
from fleet_controller.domain.steps import ArtifactFile
from fleet_controller.domain.weights import WeightParts

GGUF = "gguf"
MLX = "mlx"
SAFETENSORS = "safetensors"
LMSTUDIO = "lmstudio"  # an entry of LM Studio's own catalog, which LM Studio fetches; its repository is none of the hub


class ModelArtifact(Frozen):
    """One quantization of a model in one format: files of a hub repository at a commit, or a path on the hosts.

    `local_path` is a path to a .gguf file or to a folder with config.json, absolute or "./..." within a host's model
    folder; hub fields are empty then.
    `weights_bytes` is None where nobody has seen the file yet. `projector` is the multimodal projector that goes with
    it (a local one by its absolute path), `sees` whether it is used: see `seeing`. `local_parts` are all files of a
    split local model, in order. `parts` is what the header says of the weights, without the projector; None = unread.
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
    projector: ArtifactFile | None = None
    sees: bool = False
    local_parts: tuple[str, ...] = ()
    parts: WeightParts | None = None

    def seeing(self, wanted: bool) -> "ModelArtifact":
        """The artifact with its projector among the files, or without; ValueError where it is wanted and not there."""
        if wanted == self.sees:
            return self
        if self.projector is None:
            raise ValueError(f"{self.repository or self.local_path} has no multimodal projector (mmproj-*.gguf)")
        projector = self.projector
        files = tuple(file for file in self.files if file.path != projector.path)
        if wanted and not self.local_path:
            files = (*files, projector)
        size = projector.size_bytes if wanted else -projector.size_bytes
        weights_bytes = None if self.weights_bytes is None else self.weights_bytes + size
        return self.model_copy(update={"files": files, "sees": wanted, "weights_bytes": weights_bytes})

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
    `environment` holds what speculation needs as well, which `speculative_environment` names.
    `requirements` must be installed with the backend, whatever version of them it asks for itself.
    """

    arguments: tuple[str, ...] = ()
    environment: tuple[EnvironmentVariable, ...] = ()
    version: str = ""
    reasoning_parser: str = ""
    tool_call_parser: str = ""
    memory_fraction: str = ""
    speculative: tuple[str, ...] = ()
    speculative_environment: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    known_problems: tuple[str, ...] = ()

    def without_speculation(self) -> "BackendOverrides":
        environment = tuple(item for item in self.environment if item.name not in self.speculative_environment)
        return self.model_copy(update={"speculative": (), "environment": environment, "speculative_environment": ()})


class ResolvedModel(Frozen):
    """`name` becomes the service's name; `sampling` are (option, text) pairs in the order of the command line.

    `version_overrides` are those of versions that differ, by backend and version: for a service that runs on one.
    """

    name: str
    display_name: str = ""
    max_context: int | None = None
    sampling: tuple[tuple[str, str], ...] = ()
    shape: ModelShape | None = None
    artifacts: tuple[ModelArtifact, ...] = ()
    overrides: tuple[tuple[str, BackendOverrides], ...] = ()
    version_overrides: tuple[tuple[str, str, BackendOverrides], ...] = ()
    warnings: tuple[str, ...] = ()

    def overrides_for(self, backend: str) -> BackendOverrides:
        return next((found for name, found in self.overrides if name == backend), BackendOverrides())

    def with_overrides(self, backend: str, overrides: BackendOverrides) -> "ResolvedModel":
        """The model with other overrides for one backend."""
        others = tuple(pair for pair in self.overrides if pair[0] != backend)
        return self.model_copy(update={"overrides": (*others, (backend, overrides))})
