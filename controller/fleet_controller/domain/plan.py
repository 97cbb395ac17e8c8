"""A deploy plan: what would happen on each host, with the exact commands. They mirror controller.proto."""

from enum import StrEnum

from fleet_controller.domain.base import EnvironmentVariable, Frozen, Problem
from fleet_controller.domain.services import ServiceSpec
from fleet_controller.domain.steps import InstallerScript


class FitVerdict(StrEnum):
    UNSPECIFIED = "FIT_VERDICT_UNSPECIFIED"
    FITS = "FIT_VERDICT_FITS"
    FITS_WITH_OFFLOAD = "FIT_VERDICT_FITS_WITH_OFFLOAD"
    REFUSED = "FIT_VERDICT_REFUSED"


class PlanAction(StrEnum):
    UNSPECIFIED = "PLAN_ACTION_UNSPECIFIED"
    KEEP = "PLAN_ACTION_KEEP"
    START = "PLAN_ACTION_START"
    REPLACE = "PLAN_ACTION_REPLACE"
    REFUSE = "PLAN_ACTION_REFUSE"
    FAIL = "PLAN_ACTION_FAIL"


class FitLine(Frozen):
    what: str
    bytes: int
    arithmetic: str = ""


class PlannedCommand(Frozen):
    """One command exactly as it will run; argv is empty where the agent does the work itself."""

    purpose: str
    argv: tuple[str, ...] = ()
    environment: tuple[EnvironmentVariable, ...] = ()
    description: str = ""


class HostPlan(Frozen):
    host: str
    action: PlanAction
    reason: str = ""
    backend: str = ""
    backend_version: str = ""
    quantization: str = ""
    context_length: int = 0
    port: int = 0
    fit: FitVerdict = FitVerdict.UNSPECIFIED
    fit_lines: tuple[FitLine, ...] = ()
    free_bytes: int | None = None
    memory_kind: str = ""
    commands: tuple[PlannedCommand, ...] = ()
    download_bytes: int = 0
    service: ServiceSpec | None = None
    warnings: tuple[str, ...] = ()
    problem: Problem | None = None
    install_needed: bool = False
    because: str = ""
    old_server: str = ""
    longest_context: int = 0


class DeployRequest(Frozen):
    """What a user asked for. Empty strings and None mean: choose for me."""

    model: str = ""
    pattern: str = ""
    backend: str = ""
    quantization: str = ""
    context_length: int | None = None
    port: int | None = None
    max_parallel: int | None = None
    repository: str = ""
    backend_version: str = ""
    engine_path: str = ""
    bind_address: str = ""
    speculative: bool | None = None
    offline_folder: str = ""
    api_key: str = ""
    # Which key the reference meant when the plan was made; set by the controller, never on the wire.
    api_key_id: str = ""
    kv_cache_type: str = ""
    flash_attention: str = ""
    tensor_parallel: int | None = None
    memory_fraction: float | None = None
    dtype: str = ""
    vision: bool | None = None
    service_name: str = ""
    run_installer: bool = False
    # The script that was agreed to, where a host needs it; set by the controller, never on the wire.
    installer: InstallerScript | None = None
