"""What the cells of one host share while a bench is planned, and why a cell cannot be measured."""

from dataclasses import dataclass

from fleet_controller.backends.base import installed
from fleet_controller.benchmarking.cells import PlannedCell
from fleet_controller.benchmarking.suites import Suite
from fleet_controller.domain.addresses import base_url
from fleet_controller.domain.base import Problem
from fleet_controller.domain.benches import BenchCell, BenchRequest, CellAction
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.services import DesiredState, ServiceSpec, ServiceState
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.planning import HostState
from fleet_controller.operations.problems import problem_of
from fleet_controller.planning.jobs import WILDCARD_ADDRESSES
from fleet_inventory.hosts import Host

MODEL_OPTIONS = ("--model", "--model-path", "-m")


class CellStopped(Exception):
    """A cell cannot be measured so."""

    def __init__(self, action: CellAction, problem: Problem) -> None:
        super().__init__(problem.message)
        self.action = action
        self.problem = problem


@dataclass(frozen=True)
class Case:
    """Everything about one host and one model that its cells share."""

    context: FleetContext
    request: BenchRequest
    suite: Suite
    host: Host
    state: HostState

    @property
    def facts(self) -> HostFacts:
        return self.state.facts


def stopped_cell(host: str, model: str, action: CellAction, problem: Problem) -> PlannedCell:
    return PlannedCell(shown=BenchCell(host=host, model=model, action=action, reason=problem.message, problem=problem))


def action_of(error: Exception) -> CellAction:
    return error.action if isinstance(error, CellStopped) else CellAction.FAIL


def problem_of_cell(error: Exception) -> Problem:
    return error.problem if isinstance(error, CellStopped) else problem_of(error)


def in_the_way(case: Case, gpu_indices: tuple[int, ...], measured: str = "") -> list[str]:
    """Services of ours that should run on these devices and are not measured; no device named = all of the host."""
    return [
        status.spec.name
        for status in case.state.services
        if status.desired is DesiredState.RUNNING
        and status.state is not ServiceState.FAILED
        and status.spec.name != measured
        and (not gpu_indices or not status.spec.gpu_indices or set(gpu_indices) & set(status.spec.gpu_indices))
    ]


def engine_version(facts: HostFacts, install_key: str, label: str) -> str:
    """What the install says of itself: adopted binaries were asked for their version."""
    present = installed(facts, install_key)
    return (present.version if present is not None else None) or label


def service_url(spec: ServiceSpec) -> str:
    address = WILDCARD_ADDRESSES.get(spec.bind_address, spec.bind_address)
    return base_url(address, spec.port).removesuffix("/v1")


def model_path(spec: ServiceSpec) -> str:
    """The file or folder that a service serves, as its command line names it; "" where it names none."""
    for option, value in zip(spec.arguments, spec.arguments[1:], strict=False):
        if option in MODEL_OPTIONS and value.startswith("/"):
            return value
    return next((word for word in spec.arguments if word.startswith("/")), "")


def tokenizer_beside(path: str) -> str:
    """A folder model holds its tokenizer; beside a GGUF file there may be one."""
    return path.rsplit("/", 1)[0] if path.endswith(".gguf") else path
