"""Model files that hosts hold: what there is and who uses it, hashing it again, and taking away what nobody uses."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from fleet_controller.domain.artifacts import UNDO_OF_ROLLOUT, Artifact, ArtifactName
from fleet_controller.domain.base import Frozen, Problem
from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.rollouts import Rollout
from fleet_controller.domain.sizes import gibibytes
from fleet_controller.domain.steps import JobSpec, Step, VerifyArtifactsStep
from fleet_controller.fanout import as_they_finish, merged
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.jobs import run_job
from fleet_controller.operations.problems import problem_of
from fleet_controller.rolling.store import RolloutStore
from fleet_controller.rolling.undo import specs_back
from fleet_inventory.hosts import Host


class HostArtifacts(Frozen):
    host: str
    artifacts: tuple[Artifact, ...] = ()
    problem: Problem | None = None


async def list_artifacts(context: FleetContext, pattern: str) -> AsyncGenerator[HostArtifacts]:
    """What each host holds. Of hosts that share a cache each is told who uses it on the others, and of each file
    whether undoing the last rollout of a service would need it.

    Raises OperationError for a pattern that means no host.
    """

    async def look(host: Host) -> tuple[HostArtifacts, str]:
        try:
            async with context.pool.client(host) as agent:
                artifacts, cache = await agent.survey_artifacts()
        except Exception as error:
            return HostArtifacts(host=host.name, problem=problem_of(error)), ""
        return with_ways_back(HostArtifacts(host=host.name, artifacts=artifacts), rollouts), cache

    rollouts = RolloutStore(context.database).all()
    found = [one async for one in as_they_finish(context.select(pattern), look)]
    for host, cache in found:
        others = [other for other, shared in found if cache and shared == cache and other.host != host.host]
        yield with_users_elsewhere(host, others)


def with_users_elsewhere(host: HostArtifacts, others: Sequence[HostArtifacts]) -> HostArtifacts:
    """The same files, used by services of hosts that have the same cache, as "chat on gpu2"."""

    def shared(artifact: Artifact) -> Artifact:
        name = (artifact.repository, artifact.commit)
        users = [
            f"{service} on {other.host}"
            for other in others
            for one in other.artifacts
            if (one.repository, one.commit) == name
            for service in (*one.services, *one.jobs)
        ]
        return artifact.model_copy(update={"services": (*artifact.services, *users)}) if users else artifact

    return host.model_copy(update={"artifacts": tuple(shared(artifact) for artifact in host.artifacts)})


def with_ways_back(host: HostArtifacts, newest_first: Sequence[Rollout]) -> HostArtifacts:
    """Undoing a rollout uses the files that it goes back to, as a stopped service does."""
    needed = [
        (f"{UNDO_OF_ROLLOUT}{number}", spec.model_dump_json()) for number, spec in specs_back(newest_first, host.host)
    ]

    def used(artifact: Artifact) -> Artifact:
        place = f"models--{artifact.repository.replace('/', '--')}/snapshots/{artifact.commit}"
        users = [user for user, text in needed if place in text]
        return artifact.model_copy(update={"services": (*artifact.services, *users)})

    return host.model_copy(update={"artifacts": tuple(used(artifact) for artifact in host.artifacts)})


async def verify_artifacts(
    context: FleetContext, pattern: str, repository: str, commit: str
) -> AsyncGenerator[HostEvent]:
    """Hashes the files again, on all hosts side by side; a damaged file is its host's problem."""
    async for event in merged(_verify(context, host, repository, commit) for host in context.select(pattern)):
        yield event


async def _verify(context: FleetContext, host: Host, repository: str, commit: str) -> AsyncGenerator[HostEvent]:
    step = Step(
        name=f"verify {repository or 'all model files'}",
        verify_artifacts=VerifyArtifactsStep(repository=repository, commit=commit),
    )
    # Each time anew: a disk that was right yesterday says nothing of today.
    job = JobSpec(job_id=f"verify-artifacts-{secrets.token_hex(6)}", title=step.name, steps=(step,))
    results: list[dict[str, Any]] = []
    try:
        async for event in run_job(context, host, job, results):
            yield event
        yield _verdict(host.name, results[-1], repository)
    except Exception as error:
        yield HostEvent(host=host.name, stage="verify", done=True, problem=problem_of(error))


def _verdict(host: str, result: Mapping[str, Any], repository: str) -> HostEvent:
    problem = None
    if result["damaged"]:
        first = result["damaged"][0]
        more = f" and {len(result['damaged']) - 1} more" if len(result["damaged"]) > 1 else ""
        problem = Problem(
            code="damaged-files",
            message=f"{first['path']} of {first['repository']}{more} is damaged: its content is not what its name says",
            remedy=f"fleet pull --repo {first['repository']} --hosts {host} fetches it again",
        )
    unnamed = f", {result['unnamed']} without a hash in their name" if result["unnamed"] else ""
    message = f"{result['files']} files, {gibibytes(int(result['bytes']))}: all are what their names say{unnamed}"
    if not result["files"]:
        message = f"holds nothing of {repository}" if repository else "holds no model files"
    return HostEvent(
        host=host, stage="verify", message=message, done=True, problem=problem, result_json=json.dumps(dict(result))
    )


async def collect_artifacts(
    context: FleetContext, names: Mapping[str, Sequence[ArtifactName]]
) -> AsyncGenerator[HostEvent]:
    """Removes what was shown to the user; what is in use by now stays. Raises OperationError for an unknown host."""
    hosts = [host for name in names for host in context.select(name)]

    async def collect(host: Host) -> HostEvent:
        asked = tuple(names[host.name])
        try:
            async with context.pool.client(host) as agent:
                freed, removed = await agent.remove_artifacts(asked)
        except Exception as error:
            return HostEvent(host=host.name, stage="gc", done=True, problem=problem_of(error))
        kept = len(asked) - len(removed)
        stayed = f"; {kept} stay: in use by now, or gone already" if kept else ""
        message = f"{len(removed)} removed, {gibibytes(freed)} freed{stayed}"
        result = {"freed_bytes": freed, "removed": [name.model_dump() for name in removed]}
        return HostEvent(
            host=host.name, stage="gc", message=message, done=True, changed=bool(removed),
            result_json=json.dumps(result),
        )  # fmt: skip

    for finished in asyncio.as_completed([collect(host) for host in hosts]):
        yield await finished
