"""Installed engines: what is there, and plans that change it. They mirror agent.proto and controller.proto."""

from enum import StrEnum

from fleet_controller.domain.base import Frozen, Problem
from fleet_controller.domain.facts import EngineFacts
from fleet_controller.domain.plan import PlannedCommand
from fleet_controller.domain.steps import InstallerScript


class InstallUse(Frozen):
    """`shared_bytes` of `size_bytes` stay on the disk when the install goes: uv's cache has them too."""

    install_key: str
    size_bytes: int = 0
    shared_bytes: int = 0
    services: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    adopted_path: str = ""

    @property
    def own_bytes(self) -> int:
        return self.size_bytes - self.shared_bytes


class LeftoverKind(StrEnum):
    UNSPECIFIED = "LEFTOVER_KIND_UNSPECIFIED"
    UNFINISHED = "LEFTOVER_KIND_UNFINISHED"
    BUILD = "LEFTOVER_KIND_BUILD"
    SOURCE = "LEFTOVER_KIND_SOURCE"
    DOWNLOAD = "LEFTOVER_KIND_DOWNLOAD"
    LOCK = "LEFTOVER_KIND_LOCK"


class Leftover(Frozen):
    """Something in the engines folder that is no install; `used_by` empty = nobody needs it."""

    path: str
    kind: LeftoverKind = LeftoverKind.UNSPECIFIED
    size_bytes: int = 0
    used_by: tuple[str, ...] = ()


class HostEngine(Frozen):
    facts: EngineFacts
    size_bytes: int | None = None
    shared_bytes: int | None = None
    services: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    pinned: bool = False
    adopted_path: str = ""


class HostEngines(Frozen):
    host: str
    engines: tuple[HostEngine, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    problem: Problem | None = None


class EnginesAction(StrEnum):
    UNSPECIFIED = "ENGINES_ACTION_UNSPECIFIED"
    INSTALL = "ENGINES_ACTION_INSTALL"
    UPGRADE = "ENGINES_ACTION_UPGRADE"
    REMOVE = "ENGINES_ACTION_REMOVE"
    COLLECT = "ENGINES_ACTION_COLLECT"


class EnginesRequest(Frozen):
    """What a user asked for; "" = the pinned version, every backend."""

    action: EnginesAction
    pattern: str = ""
    backend: str = ""
    version: str = ""
    install_key: str = ""
    offline_folder: str = ""
    engine_path: str = ""
    install_only: bool = False
    keep: int = 1
    golden_bench: bool = False
    golden_threshold: float = 0.05
    canary: str = ""
    run_installer: bool = False
    # The script that was agreed to, where a host needs it; set by the controller, never on the wire.
    installer: InstallerScript | None = None


class EnginesVerdict(StrEnum):
    UNSPECIFIED = "ENGINES_VERDICT_UNSPECIFIED"
    KEEP = "ENGINES_VERDICT_KEEP"
    CHANGE = "ENGINES_VERDICT_CHANGE"
    REFUSE = "ENGINES_VERDICT_REFUSE"
    FAIL = "ENGINES_VERDICT_FAIL"


class ServiceMove(Frozen):
    service: str
    from_version: str = ""
    from_install_key: str = ""
    to_version: str = ""
    to_install_key: str = ""


class EngineRemoval(Frozen):
    install_key: str
    backend: str = ""
    version: str = ""
    freed_bytes: int = 0
    reason: str = ""


class EngineKept(Frozen):
    install_key: str
    backend: str = ""
    version: str = ""
    reason: str = ""


class HostEnginesPlan(Frozen):
    host: str
    verdict: EnginesVerdict
    reason: str = ""
    backend: str = ""
    version: str = ""
    install_key: str = ""
    install_needed: bool = False
    disk_bytes: int = 0
    commands: tuple[PlannedCommand, ...] = ()
    moves: tuple[ServiceMove, ...] = ()
    removals: tuple[EngineRemoval, ...] = ()
    kept: tuple[EngineKept, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    warnings: tuple[str, ...] = ()
    problem: Problem | None = None
