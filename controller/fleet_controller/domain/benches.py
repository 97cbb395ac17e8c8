"""What a bench is asked for, and its plan. They mirror controller.proto."""

from enum import StrEnum

from fleet_controller.domain.base import Frozen, Problem
from fleet_controller.domain.plan import PlannedCommand


class BenchPurpose(StrEnum):
    """What a bench is for: every cell, only what can still change a decision, or a machine's predictions."""

    UNSPECIFIED = "BENCH_PURPOSE_UNSPECIFIED"
    MEASURE = "BENCH_PURPOSE_MEASURE"
    DECIDE = "BENCH_PURPOSE_DECIDE"
    CALIBRATE = "BENCH_PURPOSE_CALIBRATE"


class BenchRequest(Frozen):
    """Empty strings mean: all that can run it, all that fit, as the suite has it."""

    models: tuple[str, ...] = ()
    pattern: str = ""
    backend: str = ""
    quantization: str = ""
    suite: str = ""
    client: str = ""
    endpoint: str = ""
    repeat: int = 0
    again: bool = False
    when_idle: bool = False
    pause_services: bool = False
    prompt_tokens: int | None = None
    generation_tokens: int | None = None
    repetitions: int | None = None
    repository: str = ""
    backend_version: str = ""
    engine_path: str = ""
    offline_folder: str = ""
    tokenizer: str = ""
    purpose: BenchPurpose = BenchPurpose.UNSPECIFIED
    goal: str = ""
    budget_seconds: float = 0.0


class CellAction(StrEnum):
    UNSPECIFIED = "CELL_ACTION_UNSPECIFIED"
    RUN = "CELL_ACTION_RUN"
    SKIP = "CELL_ACTION_SKIP"
    REFUSE = "CELL_ACTION_REFUSE"
    FAIL = "CELL_ACTION_FAIL"


class BenchCell(Frozen):
    """One host x model x quantization x backend x client, as it is shown."""

    cell_id: str = ""
    host: str
    model: str = ""
    quantization: str = ""
    backend: str = ""
    backend_version: str = ""
    client: str = ""
    client_version: str = ""
    action: CellAction
    reason: str = ""
    problem: Problem | None = None
    tests: tuple[str, ...] = ()
    runs: int = 0
    estimated_seconds: float = 0.0
    estimate_basis: str = ""
    estimate_is_guess: bool = False
    download_bytes: int = 0
    disk_bytes: int = 0
    install_needed: bool = False
    paused_services: tuple[str, ...] = ()
    foreign: bool = False
    commands: tuple[PlannedCommand, ...] = ()
    warnings: tuple[str, ...] = ()
    gpu_indices: tuple[int, ...] = ()
