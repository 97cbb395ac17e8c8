"""The models that are chosen for on each host: of the catalog, of the hub, a path, or what a service there serves."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fleet_controller.domain.base import Problem
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.resolved import ResolvedModel
from fleet_controller.domain.services import ServiceSpec, ServiceStatus
from fleet_controller.operations.problems import OperationError
from fleet_controller.operations.resolving import named, resolve_everything_for
from fleet_inventory.host_file import Transport
from fleet_inventory.hosts import Host

Hub = tuple[str, str]
# What was asked for, and what it is on one host.
Asked = tuple[DeployRequest, ResolvedModel | Exception]


@dataclass(frozen=True)
class KnownState:
    """What is known of a host; `basis` as in HostChoice."""

    facts: HostFacts
    services: tuple[ServiceStatus, ...]
    basis: str = ""


def hub_of(host: Host) -> Hub:
    """The hub that a host downloads from, "" = the usual one, and the reference to its token."""
    return host.environment.get("HF_ENDPOINT", ""), host.hub_token or ""


async def resolved_models(requests: Sequence[DeployRequest], hosts: Sequence[Host]) -> dict[tuple[int, Hub], Asked]:
    """Each request, by its number, as each hub has it; errors are values."""
    hubs = list(dict.fromkeys(hub_of(host) for host in hosts))
    asked = [(number, hub) for number in range(len(requests)) for hub in hubs]
    answers = await asyncio.gather(*(_resolved(requests[number], hub) for number, hub in asked))
    return dict(zip(asked, answers, strict=True))


async def _resolved(request: DeployRequest, hub: Hub) -> Asked:
    try:
        request = named(request)
        return request, await resolve_everything_for(request, *hub)
    except Exception as error:
        return request, error


def unknown_path(host: Host, resolved: ResolvedModel) -> Problem | None:
    """Why nothing can be said of a path that this machine does not have; None of all else."""
    path = next((item.local_path for item in resolved.artifacts if item.local_path and item.weights_bytes is None), "")
    if not path:
        return None
    if host.transport is Transport.LOCAL:
        if Path(path).exists():
            return None  # in its model folder
        message = f"there is no {path} on this machine"
        return Problem(code="no-model-file", message=message, remedy="check the path, or give --repo owner/name")
    return Problem(
        code="model-unknown",
        message=f"nothing is known of {path}: this machine does not have it, and on the host only a server opens it",
        remedy=f"fleet deploy {path} --hosts {host.name} checks it and serves it; --repo owner/name tells more",
    )


async def with_served(
    requests: Sequence[DeployRequest],
    found: Mapping[tuple[int, Hub], Asked],
    hosts: Sequence[Host],
    states: Sequence[KnownState | Problem],
) -> dict[str, list[Asked]]:
    """By host. A name that no catalog has is that of a service, where a host has one: then it means what is served.

    Raises OperationError (usage) for a name that nobody knows.
    """
    models: dict[str, list[Asked]] = {}
    unknown: dict[int, OperationError] = {}
    served: set[int] = set()
    for host, state in zip(hosts, states, strict=True):
        models[host.name] = []
        for number, request in enumerate(requests):
            asked = found[number, hub_of(host)]
            error = asked[1]
            if isinstance(error, OperationError) and error.usage:
                spec = _service(state, request.model)
                unknown[number] = error
                if spec is not None:
                    served.add(number)
                    asked = await _as_served(request, spec, hub_of(host))
            models[host.name].append(asked)
    for number, error in unknown.items():
        if number not in served:
            raise error
    return models


def _service(state: KnownState | Problem, name: str) -> ServiceSpec | None:
    if isinstance(state, Problem) or not name:
        return None
    return next((status.spec for status in state.services if status.spec.name == name), None)


async def _as_served(request: DeployRequest, spec: ServiceSpec, hub: Hub) -> Asked:
    """A path has one quantization, which somebody told; a repository may have others."""
    is_path = spec.model.startswith("/")
    wanted = request.model_copy(
        update={"model": spec.model, "quantization": spec.quantization}
        if is_path
        else {"model": "", "repository": spec.model}
    )
    return await _resolved(wanted, hub)
