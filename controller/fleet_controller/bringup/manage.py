"""`fleet agent status | upgrade | restart | remove | revoke`."""

from __future__ import annotations

import json
import shlex
from collections.abc import AsyncGenerator, Iterable
from dataclasses import replace

from fleet_controller.bringup.options import UpOptions
from fleet_controller.bringup.streams import over_hosts
from fleet_controller.bringup.up import bring_up
from fleet_controller.bringup.wheels import agent_release
from fleet_controller.domain.events import AgentAction, HostEvent
from fleet_controller.transport.discovery import InstalledAgent, agentctl, discover
from fleet_controller.transport.errors import BringUpFailed, NoAgent
from fleet_controller.transport.link import HostLink
from fleet_controller.transport.pool import AgentPool
from fleet_inventory.hosts import Host

REMOVE_SECONDS = 120.0


def manage_agents(
    hosts: Iterable[Host],
    pool: AgentPool,
    action: AgentAction,
    purge: bool = False,
    keep_services: bool = False,
    options: UpOptions | None = None,
) -> AsyncGenerator[HostEvent]:
    """One action on the agents of hosts; one `done` event a host.

    UPGRADE is `bring_up` for hosts that have an agent. REMOVE cancels jobs and, unless `keep_services`, stops the model
    servers first; it leaves installed engines and state, which `purge` deletes as well. Model files in the Hugging
    Face cache stay.
    """
    wanted = options or UpOptions()

    def stream(host: Host) -> AsyncGenerator[HostEvent]:
        if action is AgentAction.STATUS:
            return _status(host, pool)
        if action is AgentAction.UPGRADE:
            return _upgrade(host, pool, wanted)
        if action is AgentAction.RESTART:
            return _restart(host, pool)
        if action is AgentAction.REMOVE:
            return _remove(host, pool, purge, keep_services)
        if action is AgentAction.REVOKE:
            return _revoke(host, pool)
        raise ValueError(f"no such action: {action}")

    return over_hosts(hosts, stream)


async def _status(host: Host, pool: AgentPool) -> AsyncGenerator[HostEvent]:
    """Looks only: an agent that is not running is not started."""
    async with pool.link(host) as link:
        agent = await discover(link, host)
    if not agent.running:
        raise NoAgent(
            host.name, f"agent {agent.version} is installed, but does not run", f"fleet agent restart {host.name}"
        )
    pool.remember(host, agent.socket_path)
    identity = await pool.identity(host)
    current = agent.version == agent_release().name
    document = {
        "version": agent.version,
        "current": current,
        "manager": agent.manager,
        "pid": identity.pid,
        "protocol": identity.protocol,
        "machine_id": identity.machine_id,
        "started_unix_ms": identity.started_unix_ms,
        "machine_dir": agent.machine_dir,
        "socket_path": agent.socket_path,
    }
    note = "" if current else f"; this controller would install {agent_release().name}: fleet agent upgrade {host.name}"
    message = f"agent {agent.version} runs under {agent.manager}, pid {identity.pid}{note}"
    yield HostEvent(host=host.name, stage="status", message=message, done=True, result_json=json.dumps(document))


async def _upgrade(host: Host, pool: AgentPool, options: UpOptions) -> AsyncGenerator[HostEvent]:
    async with pool.link(host) as link:
        await discover(link, host)  # raises NoAgent: `fleet up` is for hosts that have none
    async for event in bring_up([host], pool, replace(options, force=False)):
        yield event


async def _restart(host: Host, pool: AgentPool) -> AsyncGenerator[HostEvent]:
    async with pool.link(host) as link:
        agent = await discover(link, host)
        yield HostEvent(host=host.name, stage="restart", message="restarting the agent; model servers run on")
        await pool.reset_channel(host)
        await agentctl(link, agent.machine_dir, "stop")
        await agentctl(link, agent.machine_dir, "start")
    identity = await pool.identity(host)
    message = f"agent {agent.version} runs again, pid {identity.pid}"
    yield HostEvent(host=host.name, stage="restart", message=message, done=True, changed=True)


async def _remove(host: Host, pool: AgentPool, purge: bool, keep_services: bool) -> AsyncGenerator[HostEvent]:
    async with pool.link(host) as link:
        try:
            agent = await discover(link, host)
        except NoAgent:
            message = "unchanged: no agent is installed"
            yield HostEvent(host=host.name, stage="remove", message=message, done=True)
            return
        ended = await _end_work(host, pool, keep_services)
        message = f"ended {', '.join(ended)}" if ended else "no model server and no job runs"
        yield HostEvent(host=host.name, stage="stop", message=message)
        await pool.reset_channel(host)
        await agentctl(link, agent.machine_dir, "uninstall")
        await _delete(link, agent, purge)
    pool.remember(host, "")
    pool.identities.forget(host.name)
    await pool.drop(host)
    left = "nothing of it is left but model files" if purge else f"engines and state are left in {agent.machine_dir}"
    running = "; model servers run on, without anybody to look after them" if keep_services else ""
    yield HostEvent(
        host=host.name, stage="remove", message=f"agent removed, {left}{running}", done=True, changed=True
    )  # fmt: skip


async def _revoke(host: Host, pool: AgentPool) -> AsyncGenerator[HostEvent]:
    """Asks nobody: it is for a host that was stolen, or whose disk was read, as well."""
    changed = pool.identities.revoke(host.name)
    await pool.drop(host)
    message = (
        f"its certificate counts no more; fleet up {host.name} gives it another, over SSH"
        if changed
        else "unchanged: it has no certificate that counts"
    )
    yield HostEvent(host=host.name, stage="revoke", message=message, done=True, changed=changed)


async def _end_work(host: Host, pool: AgentPool, keep_services: bool) -> list[str]:
    """Ends jobs and model servers through the agent, which is started for that where it does not run; what ended.

    A runner that nobody looks after would go on downloading and building into folders that are deleted.
    """
    async with pool.client(host) as client:
        jobs = await client.list_jobs(active_only=True)
        for job in jobs:
            await client.cancel_job(job.job_id)
        services = () if keep_services else await client.list_services()
        names = [status.spec.name for status in services if status.process is not None]
        for name in names:
            await client.stop_service(name)
    return [*(job.title or job.job_id for job in jobs), *names]


async def _delete(link: HostLink, agent: InstalledAgent, purge: bool) -> None:
    machine = agent.machine_dir
    root, found, _ = machine.rpartition("/machines/")
    if not found or not root:  # the one place where a folder is deleted whole: be sure whose it is
        raise BringUpFailed(link.host, f"{machine} is no machine folder of fleet", "remove it by hand")
    paths = [machine] if purge else [f"{machine}/agent", f"{machine}/agent.json", f"{machine}/agent.json.previous"]
    paths += [agent.socket_path, agent.socket_path.removesuffix(".sock") + ".lock"]
    script = f"rm -rf {' '.join(shlex.quote(path) for path in paths)} || exit 1\n"
    script += f"rmdir {shlex.quote(agent.socket_path.rpartition('/')[0])} 2>/dev/null\n"
    if purge:  # uv and Python that were pushed serve every machine with this home: they go with the last one
        script += f"cd {shlex.quote(root)} && rmdir machines 2>/dev/null && rm -rf tools uploads && cd / && "
        script += f"rmdir {shlex.quote(root)} 2>/dev/null\n"
    result = await link.run_script(f"{script}exit 0\n", REMOVE_SECONDS)
    if not result.ok:
        raise BringUpFailed(link.host, f"not everything could be deleted: {result.tail(2)}", f"look at {machine}")
