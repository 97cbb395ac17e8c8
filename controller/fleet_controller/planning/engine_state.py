"""What plans about engines are made from, and what they are made of."""

from fleet_controller.domain.base import Frozen, Problem
from fleet_controller.domain.engines import EnginesVerdict, HostEnginesPlan, InstallUse, Leftover
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.services import ServiceSpec, ServiceStatus
from fleet_controller.domain.steps import JobSpec


class Move(Frozen):
    """A service that changes its engine, and nothing else."""

    old: ServiceSpec
    new: ServiceSpec


class WayBack(Frozen):
    """An install that is needed to go back to what ran before; `why` as "undoing rollout 7 goes back to it"."""

    install_key: str
    why: str


class EngineState(Frozen):
    """What such a plan is made from. `unfinished` are moves that a controller began and did not see to their end."""

    facts: HostFacts
    services: tuple[ServiceStatus, ...] = ()
    installs: tuple[InstallUse, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    unfinished: tuple[Move, ...] = ()
    undoes: tuple[WayBack, ...] = ()

    def use_of(self, key: str) -> InstallUse:
        return next((use for use in self.installs if use.install_key == key), InstallUse(install_key=key))


class PlannedEngines(Frozen):
    """A host's plan, the jobs that install what it needs, and the moves that follow, one after the other.

    `canary`: measured before and after, and the other hosts wait for what comes out.
    """

    plan: HostEnginesPlan
    jobs: tuple[JobSpec, ...] = ()
    moves: tuple[Move, ...] = ()
    canary: bool = False


def stopped(host_name: str, verdict: EnginesVerdict, problem: Problem) -> PlannedEngines:
    """The plan of a host where nothing can be done, and why."""
    return PlannedEngines(
        plan=HostEnginesPlan(host=host_name, verdict=verdict, reason=problem.message, problem=problem)
    )
