"""Services whose journal was damaged: their servers are found by what they carry in their environment."""

from collections.abc import Sequence
from pathlib import Path

from fleet_agent.process import ProcessIdentity, terminate_tree, tree_members
from fleet_agent.services.journal import CorruptRecord
from fleet_agent.services.launch import NAME_VARIABLE, NOBODY, find_by_marker, name_marker
from fleet_agent.services.managed import DEFAULT_GRACE_SECONDS
from fleet_agent.services.model import (
    DesiredState,
    Problem,
    ServiceSpec,
    ServiceState,
    ServiceStatus,
    ToolReference,
    UnknownServiceError,
)


class DamagedServices:
    """They run on, and are listed as failed, until they are deployed anew or forgotten."""

    def __init__(self, folder: Path) -> None:
        """folder: of the journal, which tells our servers from another agent's."""
        self._folder = folder
        self._records: dict[str, CorruptRecord] = {}

    def add(self, record: CorruptRecord) -> None:
        self._records[record.name] = record

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def members(self, name: str) -> Sequence[ProcessIdentity]:
        """The running processes of a damaged service; none for another name."""
        return tree_members(NOBODY, self._marker(name)) if name in self._records else ()

    async def end(self, name: str) -> None:
        """Ends the server before another takes its name, and forgets the damage."""
        record = self._records.pop(name, None)
        if record is not None:
            await terminate_tree(NOBODY, DEFAULT_GRACE_SECONDS, self._marker(name))
            record.kept_as.unlink(missing_ok=True)

    async def stop(self, name: str, grace_seconds: float, remove: bool) -> ServiceStatus:
        """Raises UnknownServiceError for a name that is not damaged."""
        record = self._records.get(name)
        if record is None:
            raise UnknownServiceError(name)
        await terminate_tree(NOBODY, grace_seconds or DEFAULT_GRACE_SECONDS, self._marker(name))
        if remove:
            del self._records[name]
            record.kept_as.unlink(missing_ok=True)
        return self._status(record)

    def statuses(self) -> Sequence[ServiceStatus]:
        return [self._status(record) for record in self._records.values()]

    def _status(self, record: CorruptRecord) -> ServiceStatus:
        spec = ServiceSpec(name=record.name, tool=ToolReference(""))
        problem = Problem(
            "journal-damaged",
            f"the agent's record of this service was damaged ({record.reason}); it is kept as {record.kept_as}",
            f"deploy it again, or forget it: fleet stop {record.name} --remove",
        )
        process = find_by_marker(self._marker(record.name))
        return ServiceStatus(spec, ServiceState.FAILED, DesiredState.STOPPED, "", process=process, problem=problem)

    def _marker(self, name: str) -> str:
        return f"{NAME_VARIABLE}={name_marker(self._folder, name)}"
