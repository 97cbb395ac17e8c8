"""The calls about installed engines."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

from fleet_agent.layout import Layout
from fleet_agent.problem import ProblemError
from fleet_agent.services.supervisor import ServiceSupervisor
from fleet_agent.steps.install import check_key
from fleet_proto.v1 import agent_pb2


class EngineCalls:
    def __init__(self, layout: Layout, services: ServiceSupervisor) -> None:
        self._layout = layout
        self._services = services

    async def RemoveEngine(self, request: agent_pb2.RemoveEngineRequest, context: Any) -> agent_pb2.RemoveEngineReply:
        """Removes an install of ours with all its files. Raises ProblemError where a service is on it."""
        check_key(request.install_key, "install key")
        folder = self._layout.engines_dir / request.install_key
        if not (folder / "install.json").is_file():
            raise ProblemError("unknown-engine", f"no engine {request.install_key} here", "fleet backends list")
        users = [s.spec.name for s in self._services.list() if s.spec.tool.install_key == request.install_key]
        if users:
            raise ProblemError(
                "engine-in-use",
                f"{request.install_key} is used by {', '.join(users)}",
                f"fleet stop {users[0]} --remove, or deploy it on another version first",
            )
        return agent_pb2.RemoveEngineReply(freed_bytes=await asyncio.to_thread(_remove, folder))


def _remove(folder: Path) -> int:
    """Under another name first, so that what a crash leaves is no install."""
    freed = sum(file.lstat().st_blocks * 512 for file in folder.rglob("*"))
    doomed = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)
    return freed
