"""What `fleet deploy` takes where its user left backend or quantization open: the decision for decode, without a floor.

Nothing is read or fitted before a host has more than one candidate.
"""

import asyncio
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from fleet_controller.domain.base import Problem
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.resolved import ResolvedModel
from fleet_controller.operations.resolving import catalog, resolve_everything_for
from fleet_controller.planning.candidates import Choice
from fleet_controller.planning.considering import Candidate, Decider
from fleet_controller.planning.usable import on_request_only
from fleet_controller.state import StateDatabase
from fleet_inventory.hosts import Host

if TYPE_CHECKING:
    from fleet_controller.operations.choosing_knowledge import Knowledge
    from fleet_controller.operations.planning import HostState

Hub = tuple[str, str]
Found = ResolvedModel | BaseException


class _KnownDecider:
    """Decides by what is known; one for all hosts of a plan, so that everything is read once."""

    def __init__(self, database: StateDatabase) -> None:
        self._database = database

    @cached_property
    def _knowledge(self) -> "Knowledge":
        from fleet_controller.operations.choosing_knowledge import Knowledge

        return Knowledge(self._database, catalog())

    def __call__(
        self, host: Host, facts: HostFacts, resolved: ResolvedModel, candidates: tuple[Candidate, ...]
    ) -> Choice | None:
        from fleet_controller.choosing.explain import summary
        from fleet_controller.operations.choosing_options import Question, decision_for

        decision = decision_for(host.name, facts, resolved, candidates, self._knowledge, Question(goal_only=True))
        chosen = decision.chosen
        if chosen is None or not chosen.standing.is_known:
            return None
        found = next(one for one in candidates if one.place == chosen.option.place)
        return found.choice.model_copy(update={"because": summary(decision)})


def decider_for(database: StateDatabase, request: DeployRequest) -> Decider | None:
    """None where the user named all that there is to decide."""
    return None if request.backend and request.quantization else _KnownDecider(database)


async def with_installed_backends(
    request: DeployRequest, hosts: Sequence[Host], states: Sequence["HostState | Problem"], models: Mapping[Hub, Found]
) -> dict[Hub, Found]:
    """The models with the artifacts of backends that are taken on request only, where a host has one of them installed.

    Hubs of other hosts are not asked again.
    """
    found = dict(models)
    if request.backend or request.quantization or request.repository or request.model.startswith(("/", "./")):
        return found
    hubs = [
        (host.environment.get("HF_ENDPOINT", ""), host.hub_token or "")
        for host, state in zip(hosts, states, strict=True)
        if not isinstance(state, Problem) and has_more(state.facts)
    ]
    asked = [hub for hub in dict.fromkeys(hubs) if isinstance(models.get(hub), ResolvedModel)]
    answers = await asyncio.gather(*(resolve_everything_for(request, *hub) for hub in asked), return_exceptions=True)
    for hub, answer in zip(asked, answers, strict=True):
        known = found[hub]
        if isinstance(answer, ResolvedModel) and isinstance(known, ResolvedModel):
            found[hub] = joined(known, answer)
    return found


def has_more(facts: HostFacts) -> bool:
    """Whether a backend is installed that a deploy takes on request only elsewhere."""
    return any(engine.managed and on_request_only(engine.backend, facts) for engine in facts.engines) or any(
        tool.name == "lms" for tool in facts.tools
    )


def joined(known: ResolvedModel, more: ResolvedModel) -> ResolvedModel:
    """What a deploy knows anyway first and unchanged; of the rest what can be deployed: files, or LM Studio's entry."""
    have = {(item.format, item.repository, item.quantization) for item in known.artifacts}
    added = tuple(
        item
        for item in more.artifacts
        if (item.format, item.repository, item.quantization) not in have and (item.files or item.format == "lmstudio")
    )
    return known.model_copy(update={"artifacts": (*known.artifacts, *added)})
