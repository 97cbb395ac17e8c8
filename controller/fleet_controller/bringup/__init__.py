"""Agents on hosts: installed, upgraded, restarted and removed over a link.

    async for event in bring_up(hosts, pool, UpOptions()): ...
    async for event in manage_agents(hosts, pool, AgentAction.STATUS): ...
    trust_host_key(question)   # after a person said yes to HostEvent.host_key

Each ends with one HostEvent a host that has `done`.
"""

from fleet_controller.bringup.manage import manage_agents
from fleet_controller.bringup.options import UpOptions
from fleet_controller.bringup.trust import trust_host_key
from fleet_controller.bringup.up import bring_up

__all__ = ["UpOptions", "bring_up", "manage_agents", "trust_host_key"]
