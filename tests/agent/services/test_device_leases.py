"""Leases: one bench a device, deploys refused, paused services back whoever dies."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from fleet_agent.configuration import AgentConfiguration
from fleet_agent.layout import Layout
from fleet_agent.leases.keeper import LeaseKeeper
from fleet_agent.leases.store import Lease, LeaseStore
from fleet_agent.problem import ProblemError
from fleet_agent.process import ProcessIdentity, identity_of, is_alive
from fleet_agent.services.model import ServiceSpec, ServiceState, ServiceStatus
from fleet_agent.services.supervisor import ServiceSupervisor
from support.service_host import QUICK, NoDevices, pid_of, until

MakeSpec = Callable[..., ServiceSpec]


@pytest.fixture
def holder() -> Iterator["subprocess.Popen[bytes]"]:
    """Stands for a runner: a real process that holds a lease for as long as it lives."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def lease_of(process: "subprocess.Popen[bytes]", owner: str = "bench-1", **fields: object) -> Lease:
    identity = identity_of(process.pid)
    assert identity is not None
    values: dict[str, object] = {"title": "bench tiny Q8_0", "since_unix_ms": 1_795_000_000_000, **fields}
    return Lease(owner=owner, holder=identity, **values)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def agent_of(layout: Layout) -> AsyncIterator[ServiceSupervisor]:
    """The parts of an agent that keep leases; it is closed as a killed one is: servers and leases stay."""
    supervisor = ServiceSupervisor(layout, AgentConfiguration(), QUICK, None, NoDevices())
    await supervisor.start()
    keeper = LeaseKeeper(LeaseStore.of(layout), supervisor)
    await keeper.start()
    try:
        yield supervisor
    finally:
        await keeper.close()
        await supervisor.close()


def is_paused(status: ServiceStatus) -> bool:
    return status.process is None and status.problem is not None and status.problem.code == "paused"


def test_two_benches_do_not_share_a_device(tmp_path: Path, holder: "subprocess.Popen[bytes]") -> None:
    store = LeaseStore(tmp_path / "leases")
    first = lease_of(holder, gpu_indices=(0, 1))
    assert store.acquire(first) is None
    assert store.acquire(lease_of(holder, "bench-2", gpu_indices=(1,))) == first
    assert store.acquire(lease_of(holder, "bench-3", gpu_indices=(2,))) is None
    assert store.acquire(lease_of(holder, "bench-4")) is not None  # the whole host overlaps with everything
    store.release("bench-1")
    assert store.acquire(lease_of(holder, "bench-2", gpu_indices=(1,))) is None


def test_a_lease_ends_with_its_holder_and_not_with_time(tmp_path: Path, holder: "subprocess.Popen[bytes]") -> None:
    store = LeaseStore(tmp_path / "leases")
    store.acquire(lease_of(holder, since_unix_ms=1))  # taken in 1970
    assert [lease.owner for lease in store.live()] == ["bench-1"]
    holder.kill()
    holder.wait()
    assert store.live() == ()
    store.sweep()
    assert list((tmp_path / "leases").glob("*.json")) == []


def test_a_process_with_the_holders_pid_and_another_start_is_not_the_holder(tmp_path: Path) -> None:
    store = LeaseStore(tmp_path / "leases")
    store.acquire(Lease("bench-1", "bench", ProcessIdentity(os.getpid(), "another-boot:1"), 1))
    assert store.live() == ()


def test_a_torn_file_holds_nothing(tmp_path: Path) -> None:
    store = LeaseStore(tmp_path / "leases")
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / "bench-1.json").write_text('{"owner": "bench-1", "ti')
    assert store.live() == ()


async def test_a_deploy_to_a_leased_device_is_refused_and_says_by_whom(
    layout: Layout, make_spec: MakeSpec, holder: "subprocess.Popen[bytes]"
) -> None:
    store = LeaseStore.of(layout)
    async with agent_of(layout) as agent:
        store.acquire(lease_of(holder))
        with pytest.raises(ProblemError) as refused:
            await agent.apply(make_spec())
        assert refused.value.code == "leased"
        assert "bench tiny Q8_0 since " in refused.value.message
        store.release("bench-1")
        await agent.apply(make_spec())
        await until(agent, ServiceState.READY)


async def test_a_service_is_paused_and_comes_back(
    layout: Layout, make_spec: MakeSpec, holder: "subprocess.Popen[bytes]"
) -> None:
    store = LeaseStore.of(layout)
    async with agent_of(layout) as agent:
        await agent.apply(make_spec())
        before = await until(agent, ServiceState.READY)
        store.acquire(lease_of(holder, paused_services=("tiny",)))
        paused = await until(agent, is_paused)
        assert paused.problem is not None and "bench tiny Q8_0" in paused.problem.message
        assert before.process is not None and not is_alive(before.process)
        store.release("bench-1")
        after = await until(agent, ServiceState.READY)
        assert pid_of(after) != pid_of(before)


async def test_a_paused_service_comes_back_when_the_runner_is_killed(
    layout: Layout, make_spec: MakeSpec, holder: "subprocess.Popen[bytes]"
) -> None:
    async with agent_of(layout) as agent:
        await agent.apply(make_spec())
        await until(agent, ServiceState.READY)
        LeaseStore.of(layout).acquire(lease_of(holder, paused_services=("tiny",)))
        await until(agent, is_paused)
        os.kill(holder.pid, signal.SIGKILL)
        await asyncio.to_thread(holder.wait)
        await until(agent, ServiceState.READY)


async def test_the_agent_dies_in_a_pause_and_the_service_stays_down_until_the_bench_ends(
    layout: Layout, make_spec: MakeSpec, holder: "subprocess.Popen[bytes]"
) -> None:
    store = LeaseStore.of(layout)
    async with agent_of(layout) as agent:
        await agent.apply(make_spec())
        await until(agent, ServiceState.READY)
        store.acquire(lease_of(holder, paused_services=("tiny",)))
        await until(agent, is_paused)
    async with agent_of(layout) as agent:
        assert is_paused(await until(agent, is_paused))
        store.release("bench-1")
        await until(agent, ServiceState.READY)


async def test_agent_and_runner_die_in_a_pause_and_the_next_agent_starts_the_service(
    layout: Layout, make_spec: MakeSpec, holder: "subprocess.Popen[bytes]"
) -> None:
    """As after a reboot, too: the holder in the file is of another boot then."""
    async with agent_of(layout) as agent:
        await agent.apply(make_spec())
        await until(agent, ServiceState.READY)
        LeaseStore.of(layout).acquire(lease_of(holder, paused_services=("tiny",)))
        await until(agent, is_paused)
    holder.kill()
    holder.wait()
    async with agent_of(layout) as agent:
        await until(agent, ServiceState.READY)


async def test_the_agent_dies_between_lease_and_pause_and_the_next_one_pauses(
    layout: Layout, make_spec: MakeSpec, holder: "subprocess.Popen[bytes]"
) -> None:
    async with agent_of(layout) as agent:
        await agent.apply(make_spec())
        before = await until(agent, ServiceState.READY)
    LeaseStore.of(layout).acquire(lease_of(holder, paused_services=("tiny",)))
    assert before.process is not None and is_alive(before.process)
    async with agent_of(layout) as agent:
        await until(agent, is_paused)
        assert not is_alive(before.process)


async def test_a_service_that_is_stopped_while_paused_stays_stopped(
    layout: Layout, make_spec: MakeSpec, holder: "subprocess.Popen[bytes]"
) -> None:
    store = LeaseStore.of(layout)
    async with agent_of(layout) as agent:
        await agent.apply(make_spec())
        await until(agent, ServiceState.READY)
        store.acquire(lease_of(holder, paused_services=("tiny",)))
        await until(agent, is_paused)
        await agent.stop("tiny")
        store.release("bench-1")
        await agent.hold({})
        (status,) = agent.list()
        assert status.state is ServiceState.STOPPED and status.process is None
