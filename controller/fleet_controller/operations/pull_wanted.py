"""Which files a pull is about on each host: what was named, or what a deploy would take there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from urllib.parse import urlsplit

from fleet_controller.domain.base import Frozen, Problem
from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.pulls import PulledFiles, PullRequest
from fleet_controller.domain.resolved import ModelArtifact
from fleet_controller.domain.steps import HubDownloadStep
from fleet_controller.hub.mirrors import is_modelscope
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.planning import plan_deploy
from fleet_controller.operations.problems import OperationError
from fleet_controller.operations.resolving import catalog, hub_token, named
from fleet_controller.operations.threads import in_daemon_thread
from fleet_inventory.base import CatalogError
from fleet_inventory.hosts import Host

HOST_SOURCE = "host:"


class Wanted(Frozen):
    """`by_host` has the files of each host; `endpoints` hubs that may hand them out, the best first."""

    by_host: dict[str, PulledFiles]
    problems: dict[str, Problem]
    endpoints: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def hub_endpoint(source: str) -> str:
    """The hub that `--from` names; empty where it names none. Raises OperationError (usage)."""
    if not source or source.startswith(HOST_SOURCE):
        return ""
    parts = urlsplit(source)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise OperationError(
            "usage",
            f"--from {source}: neither a hub nor a host",
            "as in host:gpu1, or https://hf-mirror.com",
            usage=True,
        )
    return source.rstrip("/")


async def wanted_files(context: FleetContext, request: PullRequest, hosts: Sequence[Host]) -> Wanted:
    """Raises OperationError where the request cannot be met on any host."""
    if not request.model and not request.repository:
        raise OperationError(
            "no-model", "name a model or give --repo owner/name", "fleet models lists them", usage=True
        )
    if request.model.startswith(("/", "./")):
        raise OperationError("usage", f"{request.model} is a path", "fleet import takes folders", usage=True)
    deploy = named(
        DeployRequest(
            model=request.model, pattern=request.pattern, repository=request.repository,
            quantization=request.quantization, backend=request.backend,
        )
    )  # fmt: skip
    chosen = hub_endpoint(request.source)
    listed_by = "" if is_modelscope(chosen) else chosen
    artifacts, notes, token = await _artifacts(deploy, listed_by, hosts)
    if len(artifacts) == 1:
        files = _files_of(artifacts[0])
        endpoints, more = await _endpoints(artifacts[0], chosen, hosts, token, bool(request.source) and not chosen)
        by_host = {host.name: files for host in hosts}
        return Wanted(by_host=by_host, problems={}, endpoints=endpoints, notes=(*notes, *more))
    return await _as_deployed(context, deploy, hosts, chosen, notes)


async def _artifacts(
    request: DeployRequest, chosen: str, hosts: Sequence[Host]
) -> tuple[tuple[ModelArtifact, ...], tuple[str, ...], str | None]:
    """As the first hub has them that answers: the one that was named, those of the hosts, then the usual one."""
    from fleet_controller.hub.errors import HubError, HubUnreachableError
    from fleet_controller.hub.pullable import pullable_artifacts

    own = [(host.environment.get("HF_ENDPOINT", ""), host.hub_token or "") for host in hosts]
    own = [(endpoint, reference) for endpoint, reference in own if not is_modelscope(endpoint)]
    hubs = [(chosen, "")] if chosen else list(dict.fromkeys([*own, ("", "")]))
    notes: list[str] = []
    for place, (endpoint, reference) in enumerate(hubs):
        token = hub_token(request, endpoint, reference)
        try:
            found = await in_daemon_thread(pullable_artifacts, request, catalog(), endpoint, token)
            return found, tuple(notes), token
        except CatalogError as error:
            raise OperationError("no-such-model", str(error), "fleet models lists them", usage=True) from None
        except HubUnreachableError as error:
            if place == len(hubs) - 1:
                raise _hub_failed(error) from None
            notes.append(error.message)
        except HubError as error:
            raise _hub_failed(error) from None
    raise AssertionError("the last hub answers or raises")


def _hub_failed(error: Exception) -> OperationError:
    code, message, remedy = (str(getattr(error, name)) for name in ("code", "message", "remedy"))
    return OperationError(code, message, remedy, code in ("repository-unknown", "no-files"))


async def _endpoints(
    artifact: ModelArtifact, chosen: str, hosts: Sequence[Host], token: str | None, no_hub: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Hubs with the data, the best first: who has the metadata need not have the files."""
    from fleet_controller.hub.pullable import first_with_data

    own = [host.environment.get("HF_ENDPOINT", "").rstrip("/") for host in hosts]
    here = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    known = [chosen] if chosen else list(dict.fromkeys([*own, artifact.endpoint, here, ""]))
    if no_hub:
        return tuple(known), ()
    best, reasons = await in_daemon_thread(first_with_data, known, artifact, token)
    notes = [f"no files from {endpoint or 'https://huggingface.co'}: {why}" for endpoint, why in reasons.items()]
    if best is None:
        notes.append("no hub hands out the files to this machine; the hosts may reach one")
        return tuple(known), tuple(notes)
    return (best, *(endpoint for endpoint in known if endpoint != best and endpoint not in reasons)), tuple(notes)


async def _as_deployed(
    context: FleetContext, request: DeployRequest, hosts: Sequence[Host], chosen: str, notes: tuple[str, ...]
) -> Wanted:
    """Where a name means several artifacts each host gets what a deploy would take there."""
    plan = await plan_deploy(context, request)
    by_host: dict[str, PulledFiles] = {}
    problems: dict[str, Problem] = {}
    endpoints: list[str] = [chosen] if chosen else []
    for item in plan.hosts:
        prepare = item.deployment.prepare
        step = next((one.hub_download for one in prepare.steps if one.hub_download), None) if prepare else None
        if step is not None:
            by_host[item.shown.host] = _files_of_step(step, item.shown.quantization)
            endpoints.append(step.endpoint.rstrip("/"))
        else:
            nothing = Problem(code="nothing-to-pull", message=item.shown.reason or "there is nothing to fetch for it")
            problems[item.shown.host] = item.shown.problem or nothing
    return Wanted(by_host=by_host, problems=problems, endpoints=tuple(dict.fromkeys([*endpoints, ""])), notes=notes)


def _files_of(artifact: ModelArtifact) -> PulledFiles:
    return PulledFiles(
        repository=artifact.repository,
        commit=artifact.commit,
        revision=artifact.revision,
        quantization=artifact.quantization,
        files=artifact.files,
    )


def _files_of_step(step: HubDownloadStep, quantization: str) -> PulledFiles:
    return PulledFiles(
        repository=step.repository,
        commit=step.commit,
        revision=step.revision,
        quantization=quantization,
        files=step.files,
    )
