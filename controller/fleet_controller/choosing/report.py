"""What is chosen for hosts, as it is told. It mirrors ChooseReply of controller.proto."""

from fleet_controller.choosing.decision import Decision
from fleet_controller.domain.base import Frozen, Problem


class ModelChoice(Frozen):
    """The decision for one model on one host; `summary` is one line, `explanation` all of it for a person."""

    model: str
    problem: Problem | None = None
    decision: Decision | None = None
    explanation: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    next_commands: tuple[str, ...] = ()
    summary: str = ""


class HostChoice(Frozen):
    """`basis` says whose facts were taken where the host did not answer now, "" = its own of this moment."""

    host: str
    chip: str = ""
    device_count: int = 1
    basis: str = ""
    problem: Problem | None = None
    models: tuple[ModelChoice, ...] = ()
    comparison: tuple[str, ...] = ()
