"""What a pull would do on each host: asks hosts and hub, changes nothing, and is kept so that it can be run."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from fleet_controller.domain.artifacts import Artifact
from fleet_controller.domain.base import Problem
from fleet_controller.domain.facts import HostFacts
from fleet_controller.domain.pulls import (
    PlannedPull,
    PulledFiles,
    PullHost,
    PullPart,
    PullPlan,
    PullRequest,
    PullSource,
)
from fleet_controller.domain.sizes import gibibytes
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.problems import OperationError, problem_of
from fleet_controller.operations.pull_import import imported_files
from fleet_controller.operations.pull_wanted import HOST_SOURCE, Wanted, hub_endpoint, wanted_files
from fleet_controller.pulling.store import PullStore
from fleet_inventory.hosts import Host

USUAL_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Seen:
    """What a host holds now."""

    facts: HostFacts
    artifacts: tuple[Artifact, ...]


async def plan_pull(context: FleetContext, request: PullRequest) -> PullPlan:
    """The plan of each host of the pattern. Raises OperationError where the request itself cannot be met."""
    hub_endpoint(request.source)
    hosts = context.select(request.pattern)
    source_host, folder = _source_host(context, request)
    asked = [*hosts, *([source_host] if source_host is not None and source_host not in hosts else [])]
    states = await asyncio.gather(*(_seen(context, host) for host in asked))
    seen = {host.name: state for host, state in zip(asked, states, strict=True)}
    source_state = seen[source_host.name] if source_host is not None else None
    if isinstance(source_state, Problem):
        raise OperationError(source_state.code, source_state.message, source_state.remedy)
    if request.folder:
        wanted, source = await imported_files(context, request, hosts)
    else:
        wanted = await wanted_files(context, request, hosts)
        source = _source(wanted, source_host, folder)
    failed = [PullHost(host=name, part=PullPart.FAIL, problem=problem) for name, problem in wanted.problems.items()]
    failed += [
        PullHost(host=name, part=PullPart.FAIL, problem=state)
        for name, state in seen.items()
        if isinstance(state, Problem) and name not in wanted.problems
    ]
    pulls = []
    for files in dict.fromkeys(wanted.by_host[host.name] for host in hosts if host.name in wanted.by_host):
        there = [
            (host, state)
            for host in asked
            if isinstance(state := seen[host.name], Seen) and wanted.by_host.get(host.name, files) == files
        ]
        if there:
            pulls.append(_planned(context, request, files, source, there, [host.name for host in hosts], wanted.notes))
    body = PullPlan(plan_id="", pulls=tuple(pulls), failed=tuple(failed))
    plan_id = hashlib.sha256(body.model_dump_json().encode()).hexdigest()[:12]
    plan = body.model_copy(update={"plan_id": plan_id})
    context.database.save_plan(plan_id, plan.model_dump_json())
    return plan


def load_pull_plan(context: FleetContext, plan_id: str) -> PullPlan:
    """A plan that `plan_pull` kept. Raises OperationError where there is none."""
    body = context.database.load_plan(plan_id)
    if body is None:
        raise OperationError("no-such-plan", f"plan {plan_id} is not known here", "repeat the command")
    return PullPlan.model_validate_json(body)


async def _seen(context: FleetContext, host: Host) -> Seen | Problem:
    try:
        async with context.pool.client(host) as agent:
            facts, artifacts = await asyncio.gather(agent.facts(("disk",)), agent.list_artifacts())
        return Seen(facts, artifacts)
    except Exception as error:
        return problem_of(error)


def _source_host(context: FleetContext, request: PullRequest) -> tuple[Host | None, str]:
    """The host that `--from host:NAME[:/folder]` names, or that an import's folder is on. Raises OperationError."""
    if request.folder:
        name, folder = request.folder_host, request.folder
    elif request.source.startswith(HOST_SOURCE):
        name, _, folder = request.source.removeprefix(HOST_SOURCE).partition(":")
    else:
        return None, ""
    if not name:
        return None, ""
    if folder and not folder.startswith("/"):
        raise OperationError("usage", f"{folder} is no absolute path on {name}", usage=True)
    known = context.inventory().hosts.get(name)
    if known is None:
        raise OperationError("no-such-host", f"there is no host {name}", "fleet hosts lists them", usage=True)
    return known, folder


def _source(wanted: Wanted, host: Host | None, folder: str) -> PullSource:
    if host is not None:
        words = f"{folder} on {host.name}" if folder else host.name
        return PullSource(endpoints=wanted.endpoints, host=host.name, folder=folder, words=words)
    return PullSource(endpoints=wanted.endpoints, words=(wanted.endpoints or ("",))[0] or USUAL_HUB)


def _planned(
    context: FleetContext,
    request: PullRequest,
    files: PulledFiles,
    source: PullSource,
    there: Sequence[tuple[Host, Seen]],
    asked_for: Sequence[str],
    notes: tuple[str, ...],
) -> PlannedPull:
    begun = PullStore(context.database).begun_on(files)
    hosts = [_part(host, state, files, source, host.name in begun) for host, state in there]
    if not any(host.part is PullPart.HEAD for host in hosts) and any(host.part is PullPart.FETCH for host in hosts):
        # Who has all of it gives it to the others: nothing comes from the internet.
        place = next((n for n, host in enumerate(hosts) if host.part is PullPart.HAS), None)
        if place is not None:
            hosts[place] = hosts[place].model_copy(update={"part": PullPart.HEAD})
            source = source.model_copy(
                update={"host": hosts[place].host, "words": f"{hosts[place].host}, which has it"}
            )
    hosts = [host for host in hosts if host.host in asked_for or host.part is PullPart.HEAD]
    origin = [request.source, request.folder_host, request.folder]
    digest = hashlib.sha256("\n".join([files.model_dump_json(), *origin, *sorted(asked_for)]).encode()).hexdigest()
    earlier = _unfinished(context, digest, files.repository, request.stop)
    pull_id = earlier.pull_id if earlier is not None else secrets.token_hex(5)
    return PlannedPull(
        pull_id=pull_id,
        digest=digest,
        files=files,
        source=source,
        hosts=earlier.hosts if earlier is not None else tuple(hosts),
        notes=notes,
        resumes=earlier is not None,
        rate_bytes_per_second=request.rate_bytes_per_second,
    )


def _unfinished(context: FleetContext, digest: str, repository: str, may_be_busy: bool) -> PlannedPull | None:
    """A pull of the same files onto the same hosts that was not ended: it is gone on with. Raises OperationError."""
    store = PullStore(context.database)
    found = next((pull for pull in store.running() if pull.digest == digest), None)
    ours = found is None or context.running.digest_of(("pull", found.pull_id)) is not None
    if found is not None and not ours and not may_be_busy and store.is_carried_out(found.pull_id):
        message = f"another terminal is at this pull of {repository}"
        raise OperationError("pull-busy", message, "wait for it, or end it: the same command with --stop")
    return found


def _part(host: Host, state: Seen, files: PulledFiles, source: PullSource, has_parts: bool) -> PullHost:
    """has_parts: it may hold more than is known here, and is to judge by itself whether the rest fits."""
    held: set[str] = set()
    for artifact in state.artifacts:
        if (artifact.repository, artifact.commit) == (files.repository, files.commit):
            held |= set(artifact.files)
    missing = sum(file.size_bytes for file in files.files if file.path not in held)
    disk = next((disk for disk in state.facts.disks if disk.purpose == "models"), None)
    free = disk.free_bytes if disk is not None else None
    shown = PullHost(host=host.name, part=PullPart.FETCH, missing_bytes=missing, free_bytes=free)
    lacks_any = any(file.path not in held for file in files.files)
    if host.name == source.host:
        if not source.folder and lacks_any:
            message = f"{host.name} does not have {files.repository} at {files.commit[:12]}"
            raise OperationError("source-lacks-files", message, "leave --from out, or name its folder")
        return shown.model_copy(update={"part": PullPart.HEAD})
    if not lacks_any:
        return shown.model_copy(update={"part": PullPart.HAS})
    if free is not None and missing > free and not has_parts:
        where = disk.path if disk is not None else "its disk"
        message = f"{where} has {gibibytes(free)} free, {gibibytes(missing)} are needed"
        remedy = f"fleet artifacts gc --hosts {host.name} shows what could go"
        problem = Problem(code="disk-full", message=message, remedy=remedy)
        return shown.model_copy(update={"part": PullPart.REFUSE, "problem": problem})
    return shown
