"""What an evaluation is asked for, and its plan. They mirror controller.proto."""

from fleet_controller.domain.base import Frozen, Problem
from fleet_controller.domain.benches import CellAction
from fleet_controller.domain.plan import PlannedCommand


class EvalRequest(Frozen):
    """Empty strings and zeros mean: as the protocol has it, as the server has it, or choose for me."""

    models: tuple[str, ...] = ()
    pattern: str = ""
    protocol: str = ""
    perplexity: bool = False
    quantization: str = ""
    subjects: tuple[str, ...] = ()
    questions: int = 0
    all: bool = False
    workers: int = 0
    max_tokens: int = 0
    seed: int = 0
    dataset: str = ""
    deploy: bool = False
    backend: str = ""
    repository: str = ""
    backend_version: str = ""
    engine_path: str = ""
    offline_folder: str = ""
    corpus: str = ""
    chunks: int = 0
    context: int = 0
    pause_services: bool = False
    again: bool = False
    base: str = ""

    @property
    def quantizations(self) -> tuple[str, ...]:
        return tuple(word.strip().upper() for word in self.quantization.split(",") if word.strip())


class EvalCell(Frozen):
    """One host x model x quantization, and what is asked of it, as it is shown."""

    cell_id: str = ""
    host: str
    model: str = ""
    quantization: str = ""
    backend: str = ""
    backend_version: str = ""
    metric: str = ""
    protocol: str = ""
    server: str = ""
    action: CellAction
    reason: str = ""
    problem: Problem | None = None
    questions: int = 0
    workers: int = 0
    estimated_seconds: float = 0.0
    estimate_basis: str = ""
    download_bytes: int = 0
    disk_bytes: int = 0
    install_needed: bool = False
    paused_services: tuple[str, ...] = ()
    commands: tuple[PlannedCommand, ...] = ()
    warnings: tuple[str, ...] = ()
