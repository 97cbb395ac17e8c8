"""The calls about installed engines: between wire messages and the engines' folder."""

import asyncio
from typing import Any

from fleet_agent.engines.leftovers import Leftover
from fleet_agent.engines.store import EngineStore, InstallUse, delete
from fleet_agent.engines.uses import Uses, find_uses
from fleet_agent.jobs.supervisor import JobSupervisor
from fleet_agent.layout import Layout
from fleet_agent.services.supervisor import ServiceSupervisor
from fleet_proto.v1 import agent_pb2


class EngineCalls:
    """What is in use is asked on the event loop that owns the supervisors; sizes and deletions are for a thread."""

    def __init__(self, layout: Layout, services: ServiceSupervisor, jobs: JobSupervisor) -> None:
        self._layout = layout
        self._services = services
        self._jobs = jobs
        self._store = EngineStore(layout, self._uses)

    async def SurveyEngines(
        self, request: agent_pb2.SurveyEnginesRequest, context: Any
    ) -> agent_pb2.SurveyEnginesReply:
        installs, leftovers = await asyncio.to_thread(self._store.survey, self._store.uses())
        return agent_pb2.SurveyEnginesReply(
            installs=[_install_to_wire(one) for one in installs],
            leftovers=[_leftover_to_wire(one) for one in leftovers],
        )

    async def RemoveEngine(self, request: agent_pb2.RemoveEngineRequest, context: Any) -> agent_pb2.RemoveEngineReply:
        """Removes an install of ours with all its files. Raises ProblemError where something is on it."""
        doomed = self._store.set_aside(request.install_key)
        return agent_pb2.RemoveEngineReply(freed_bytes=await asyncio.to_thread(delete, doomed))

    async def CollectLeftovers(
        self, request: agent_pb2.CollectLeftoversRequest, context: Any
    ) -> agent_pb2.CollectLeftoversReply:
        doomed, removed = self._store.set_leftovers_aside(request.paths)
        freed = await asyncio.to_thread(delete, doomed)
        return agent_pb2.CollectLeftoversReply(freed_bytes=freed, removed=removed)

    def _uses(self) -> Uses:
        return find_uses(self._services.specs(), self._jobs.active_specs())


def _install_to_wire(use: InstallUse) -> agent_pb2.InstallUse:
    return agent_pb2.InstallUse(
        install_key=use.install_key,
        size_bytes=use.disk.size_bytes,
        shared_bytes=use.disk.shared_bytes,
        services=use.services,
        jobs=use.jobs,
        adopted_path=use.adopted_path,
    )


def _leftover_to_wire(leftover: Leftover) -> agent_pb2.Leftover:
    return agent_pb2.Leftover(
        path=leftover.path,
        kind=agent_pb2.LeftoverKind.Value(leftover.kind.value),
        size_bytes=leftover.size_bytes,
        used_by=leftover.used_by,
    )
