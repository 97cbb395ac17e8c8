"""Bring-up of real agents on this machine: two hosts, one machine, nothing but processes of this user."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from fleet_controller.bringup import UpOptions, bring_up, manage_agents
from fleet_controller.domain.events import AgentAction, HostEvent
from fleet_controller.domain.steps import JobSpec, RunToolStep, Step, ToolRef
from fleet_controller.transport import AgentPool, NoAgent
from fleet_inventory.hosts import Host

pytestmark = pytest.mark.slow


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Host]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FLEET_STATE_DIR", str(tmp_path / "state"))
    return [
        Host.model_validate(
            {"name": name, "address": "localhost", "transport": "local", "agent_root": str(tmp_path / name)}
        )
        for name in ("one", "two")
    ]


@pytest.fixture
async def pool(tmp_path: Path, hosts: list[Host]) -> AsyncIterator[AgentPool]:
    pool = AgentPool(tmp_path / "state")
    yield pool
    await last(manage_agents(hosts, pool, AgentAction.REMOVE, purge=True))
    await pool.close()
    assert not agents_under(tmp_path)


async def last(events: AsyncIterator[HostEvent]) -> dict[str, HostEvent]:
    return {event.host: event async for event in events if event.done}


def agents_under(folder: Path) -> list[psutil.Process]:
    return [
        process for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] and process.info["cmdline"][0].startswith(f"{folder}/")
    ]  # fmt: skip


async def test_two_hosts_on_one_machine_come_up_and_the_second_time_nothing_changes(
    hosts: list[Host], pool: AgentPool
) -> None:
    first = await last(bring_up(hosts, pool))
    assert [(event.changed, event.problem) for event in first.values()] == [(True, None)] * 2
    identities = [await pool.identity(host) for host in hosts]
    assert identities[0].machine_id != identities[1].machine_id
    second = await last(bring_up(hosts, pool))
    assert [(event.changed, event.message.startswith("unchanged")) for event in second.values()] == [(False, True)] * 2
    assert [await pool.identity(host) for host in hosts] == identities


async def test_another_configuration_is_applied(hosts: list[Host], pool: AgentPool, tmp_path: Path) -> None:
    await last(bring_up(hosts[:1], pool))
    before = await pool.identity(hosts[0])
    changed = hosts[0].model_copy(update={"environment": {"HF_HUB_OFFLINE": "1"}})
    assert (await last(bring_up([changed], pool)))["one"].changed
    assert (await pool.identity(changed)).pid != before.pid
    (configuration,) = tmp_path.glob("one/machines/*/agent.json")
    assert json.loads(configuration.read_text()) == {"environment": {"HF_HUB_OFFLINE": "1"}}
    assert configuration.stat().st_mode & 0o077 == 0


async def test_an_agent_that_was_killed_is_started_at_the_next_contact(hosts: list[Host], pool: AgentPool) -> None:
    await last(bring_up(hosts[:1], pool))
    before = await pool.identity(hosts[0])
    os.kill(before.pid, signal.SIGKILL)
    await asyncio.to_thread(wait_gone, before.pid)
    fresh = AgentPool(Path(os.environ["FLEET_STATE_DIR"]))
    async with fresh.client(hosts[0]) as agent:
        assert (await agent.facts()).machine_id == before.machine_id
    assert (await fresh.identity(hosts[0])).pid != before.pid
    await fresh.close()


async def test_a_warm_connection_notices_that_its_agent_died(hosts: list[Host], pool: AgentPool) -> None:
    await last(bring_up(hosts[:1], pool))
    before = await pool.identity(hosts[0])
    async with pool.client(hosts[0]) as agent:
        connected = agent.channel.get_state()  # before the kill: the change may be over before we look
        os.kill(before.pid, signal.SIGKILL)
        await agent.channel.wait_for_state_change(connected)
    assert (await pool.identity(hosts[0])).pid != before.pid


def wait_gone(pid: int) -> None:
    try:
        psutil.Process(pid).wait(timeout=10)
    except psutil.NoSuchProcess:
        return


async def test_status_restart_and_remove(hosts: list[Host], pool: AgentPool, tmp_path: Path) -> None:
    await last(bring_up(hosts[:1], pool))
    one = hosts[:1]
    status = (await last(manage_agents(one, pool, AgentAction.STATUS)))["one"]
    document = json.loads(status.result_json)
    assert document["current"] is True
    assert document["manager"] == "background"
    restarted = (await last(manage_agents(one, pool, AgentAction.RESTART)))["one"]
    assert restarted.changed
    assert (await pool.identity(hosts[0])).pid != document["pid"]
    removed = (await last(manage_agents(one, pool, AgentAction.REMOVE)))["one"]
    assert removed.changed
    assert "engines and state are left" in removed.message
    (machine,) = tmp_path.glob("one/machines/*")
    assert not (machine / "agent").exists()
    again = (await last(manage_agents(one, pool, AgentAction.REMOVE)))["one"]
    assert (again.changed, again.problem) == (False, None)


async def test_removal_cancels_jobs_and_a_purge_leaves_nothing(
    hosts: list[Host], pool: AgentPool, tmp_path: Path
) -> None:
    await last(bring_up(hosts[:1], pool))
    tool = RunToolStep(tool=ToolRef(name="python3"), arguments=("-c", f"import time; time.sleep(600)  # {tmp_path}"))
    async with pool.client(hosts[0]) as agent:
        await agent.submit_job(JobSpec(job_id="long", title="a long job", steps=(Step(name="run", run_tool=tool),)))
        async for event in agent.watch_job("long"):
            if event.step_started is not None:
                break
    seen = [event async for event in manage_agents(hosts[:1], pool, AgentAction.REMOVE, purge=True)]
    assert "ended a long job" in [event.message for event in seen]
    assert (seen[-1].changed, seen[-1].problem) == (True, None)
    assert not (tmp_path / "one").exists()
    assert not [one for one in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(one.info["cmdline"] or ())]


async def test_status_and_upgrade_of_a_host_without_agent_name_fleet_up(hosts: list[Host], pool: AgentPool) -> None:
    for action in (AgentAction.STATUS, AgentAction.UPGRADE, AgentAction.RESTART):
        event = (await last(manage_agents(hosts[:1], pool, action)))["one"]
        assert event.problem is not None
        assert (event.problem.code, event.problem.remedy) == ("no-agent", "fleet up one")


async def test_a_name_that_means_another_place_now_reaches_the_agent_there(
    hosts: list[Host], pool: AgentPool, tmp_path: Path
) -> None:
    """hosts.yaml was edited: neither a warm connection nor a remembered socket may lead to the former agent."""
    await last(bring_up(hosts, pool))
    one, two = [(await pool.identity(host)).pid for host in hosts]
    moved = hosts[0].model_copy(update={"agent_root": hosts[1].agent_root})
    assert (await pool.identity(moved)).pid == two
    assert (await pool.identity(hosts[0])).pid == one
    cold = AgentPool(tmp_path / "state")  # another command, which knows what was remembered
    assert (await cold.identity(moved)).pid == two
    await cold.close()


async def test_contact_with_a_host_that_was_never_brought_up(hosts: list[Host], pool: AgentPool) -> None:
    with pytest.raises(NoAgent):
        async with pool.client(hosts[0]):
            pass


async def test_a_service_manager_that_the_host_does_not_have(hosts: list[Host], pool: AgentPool) -> None:
    event = (await last(bring_up(hosts[:1], pool, UpOptions(manager="launchd"))))["one"]
    assert event.problem is not None
    assert "cannot run the agent under launchd" in event.problem.message


async def test_a_wheel_folder_that_is_not_there(hosts: list[Host], pool: AgentPool, tmp_path: Path) -> None:
    host = hosts[0].model_copy(update={"python": "/usr/bin/env"})  # no borrowing: a named interpreter installs
    event = (await last(bring_up([host], pool, UpOptions(wheel_folder=tmp_path / "missing"))))["one"]
    assert event.problem is not None
    assert event.changed is False
