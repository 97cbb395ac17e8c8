"""Model files that a host holds. They mirror artifacts.proto; sizes are bytes."""

from fleet_controller.domain.base import Frozen

# How an undo is called among the services that use an artifact.
UNDO_OF_ROLLOUT = "undo of rollout "


class Artifact(Frozen):
    repository: str
    commit: str = ""
    revisions: tuple[str, ...] = ()
    size_bytes: int = 0
    files: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    brought: bool = False
    own_bytes: int = 0


class ArtifactName(Frozen):
    repository: str
    commit: str = ""
