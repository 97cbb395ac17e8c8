"""Bring hosts up and look after their agents; the work itself is bringup's."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from fleet_inventory.hosts import Host, Transport

from fleet_controller.domain.events import AgentAction, HostEvent
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.fanout import merged
from fleet_controller.operations.problems import OperationError


@dataclass(frozen=True)
class UpRequest:
    """Empty strings mean: as hosts.yaml says, and from the hosts' own package index."""

    pattern: str
    transport: str = ""
    wheel_folder: str = ""
    force: bool = False
