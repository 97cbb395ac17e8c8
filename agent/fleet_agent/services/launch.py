"""How a server is started, and how one is found again that was started and not written down."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fleet_agent.process import ProcessIdentity, descendants, spawn, tree_members
from fleet_agent.services.logs import ServiceLog

# In the environment of every server: the token of this one start, and whose service it is.
TOKEN_VARIABLE = "FLEET_SERVICE_TOKEN"
NAME_VARIABLE = "FLEET_SERVICE"
NOBODY = ProcessIdentity(-1, "")


@dataclass(frozen=True)
class Launch:
    """What will be started; the environment may hold a secret, so that it is not shown."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)


def spawn_marked(launch: Launch, folder: Path, name: str, token: str, log: ServiceLog) -> ProcessIdentity:
    """Starts the server with both markers in its environment and its output in the log. Raises OSError."""
    markers = {TOKEN_VARIABLE: token, NAME_VARIABLE: name_marker(folder, name)}
    output = log.open_for_append()
    try:
        return spawn(launch.argv, {**launch.environment, **markers}, cwd=folder, stdout=output, stderr=output)
    finally:
        os.close(output)


def name_marker(folder: Path, name: str) -> str:
    """The value of FLEET_SERVICE: whose service a process is, without the journal."""
    return f"{folder}/{name}"


def find_by_marker(marker: str) -> ProcessIdentity | None:
    """The top process of those that carry "NAME=value" in their environment; None where nobody does."""
    carriers = tree_members(NOBODY, marker)
    below = {child for one in carriers for child in descendants(one)}
    tops = [one for one in carriers if one not in below]
    leaders = [one for one in tops if _leads_session(one)]
    return next(iter(leaders or tops), None)


def _leads_session(identity: ProcessIdentity) -> bool:
    try:
        return os.getsid(identity.pid) == identity.pid
    except OSError:
        return False
