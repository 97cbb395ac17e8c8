"""Choices from captured facts, hub listings and the reference data, as `fleet choose` makes them; no host, no hub."""

from pathlib import Path
from typing import Any

from fleet_controller.choosing.report import HostChoice
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.resolved import ResolvedModel
from fleet_controller.domain.services import ServiceStatus
from fleet_controller.hub.errors import RepositoryUnknownError
from fleet_controller.hub.everything import everything_of
from fleet_controller.hub.metadata import HubSnapshot
from fleet_controller.operations.choosing import choice_of
from fleet_controller.operations.choosing_knowledge import Knowledge
from fleet_controller.operations.choosing_models import KnownState
from fleet_controller.operations.choosing_options import Question
from fleet_controller.state import StateDatabase
from fleet_inventory.catalog import load_catalog
from fleet_inventory.hosts import Host
from support.golden_plans import listing


def knowledge(folder: Path) -> Knowledge:
    """With the reference rows, and those that a test puts into `folder`/fleet.db before."""
    return Knowledge(StateDatabase(folder / "fleet.db"), load_catalog())


def everything(request: DeployRequest) -> ResolvedModel:
    return everything_of(request, load_catalog(), _listing)


def _listing(repository: str) -> HubSnapshot:
    try:
        return listing(repository)
    except KeyError:
        raise RepositoryUnknownError(f"there is no repository {repository} on the captured hub") from None


def chosen_on(
    facts: HostFacts,
    known: Knowledge,
    *models: str,
    question: Question | None = None,
    host: str = "here",
    services: tuple[ServiceStatus, ...] = (),
    **wishes: Any,
) -> HostChoice:
    """The choice for one host; `wishes` are fields of DeployRequest."""
    requests = [DeployRequest(model=model, **wishes) for model in models]
    models_there = [(request, everything(request)) for request in requests]
    where = Host(name=host, address=host)
    return choice_of(where, KnownState(facts, services), models_there, known, question or Question())
