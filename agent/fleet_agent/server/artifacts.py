"""The calls about model files: between wire messages and the Hugging Face cache."""

import asyncio
import contextlib
import json
from typing import Any

from fleet_agent.artifacts.cache import HubCache, list_artifacts
from fleet_agent.artifacts.survey import ArtifactUses, delete, left_aside, set_aside, survey_artifacts, texts_of
from fleet_agent.artifacts.verified import VerifiedNotes
from fleet_agent.jobs.supervisor import JobSupervisor
from fleet_agent.layout import Layout
from fleet_agent.server.jobs import to_wire
from fleet_agent.services.supervisor import ServiceSupervisor
from fleet_agent.steps.cache_marker import cache_marker
from fleet_proto.v1 import artifacts_pb2


def services_of_other_machines(layout: Layout) -> dict[str, frozenset[str]]:
    """Labs mount homes over the network: what another machine of the same home serves uses the same files."""
    found = {}
    for path in layout.root.glob("machines/*/services/*.json"):
        machine = path.parent.parent
        if machine == layout.machine_dir:
            continue
        with contextlib.suppress(OSError, ValueError):
            found[f"{path.stem} on {machine.name[:12]}"] = texts_of(json.loads(path.read_text(encoding="utf-8")))
    return found


class ArtifactCalls:
    """Who uses what is asked on the event loop that owns the supervisors; looking and deleting are for a thread."""

    def __init__(self, layout: Layout, services: ServiceSupervisor, jobs: JobSupervisor) -> None:
        self._layout = layout
        self._services = services
        self._jobs = jobs
        self._notes = VerifiedNotes(layout.machine_dir)

    async def ListArtifacts(
        self, request: artifacts_pb2.ListArtifactsRequest, context: Any
    ) -> artifacts_pb2.ListArtifactsReply:
        if request.survey:
            found = await asyncio.to_thread(survey_artifacts, self._layout.hf_home, self._notes, self._uses())
            cache = await asyncio.to_thread(cache_marker, HubCache(self._layout.hf_home).folder)
        else:
            found, cache = await asyncio.to_thread(list_artifacts, self._layout.hf_home), ""
        artifacts = [to_wire(one, artifacts_pb2.Artifact) for one in found]
        return artifacts_pb2.ListArtifactsReply(artifacts=artifacts, cache=cache)

    async def RemoveArtifacts(
        self, request: artifacts_pb2.RemoveArtifactsRequest, context: Any
    ) -> artifacts_pb2.RemoveArtifactsReply:
        cache, uses = HubCache(self._layout.hf_home), self._uses()
        doomed, removed = left_aside(cache), []
        for name in request.artifacts:
            aside = set_aside(cache, name.repository, name.commit, uses)
            if aside is not None:
                doomed.append(aside)
                removed.append(name)
        freed = [await asyncio.to_thread(delete, aside, self._notes) for aside in doomed]
        return artifacts_pb2.RemoveArtifactsReply(freed_bytes=sum(freed), removed=removed)

    def _uses(self) -> ArtifactUses:
        jobs = {job_id: texts_of(spec) for job_id, spec in self._jobs.active_specs()}
        services: dict[str, frozenset[str]] = {}
        for spec in self._services.specs():  # a server on its way to replace one of its name comes after that
            services[f"{spec.name}'s successor" if spec.name in services else spec.name] = texts_of(spec)
        services.update(services_of_other_machines(self._layout))
        return ArtifactUses(services, jobs)
