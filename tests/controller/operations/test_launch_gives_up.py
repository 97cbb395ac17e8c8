"""Someone waits at a terminal for a start that the agent puts off again and again: the wait ends and says why."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fleet_controller.domain.base import Problem
from fleet_controller.domain.services import DesiredState, ServiceSpec, ServiceState, ServiceStatus, Successor
from fleet_controller.domain.steps import ToolRef
from fleet_controller.operations.launch import REFUSALS_BEFORE_GIVING_UP, LaunchFailed, launch
from fleet_controller.settings import Settings
from fleet_inventory.hosts import Host

HOST = Host.model_validate({"name": "desk", "address": "localhost", "transport": "local"})
SPEC = ServiceSpec(name="tiny", backend="llama.cpp", tool=ToolRef(name="bin/llama-server"), port=8100)
TAKEN = Problem(code="port-taken", message="port 8100 is taken by pid 7", remedy="--port N")


class Agent:
    """Tells the given statuses, then nothing more: whoever still waits would wait for ever."""

    def __init__(self, statuses: list[ServiceStatus], applied: ServiceStatus | None = None) -> None:
        self.statuses = statuses
        self.applied = applied or _status(ServiceState.STARTING)
        self.told = 0

    async def apply_service(self, spec: ServiceSpec, keep_former: bool = False) -> ServiceStatus:
        assert keep_former, "a ready server is kept where there is room"
        return self.applied

    async def watch_service(self, name: str) -> AsyncIterator[ServiceStatus]:
        for status in self.statuses:
            self.told += 1
            yield status
        raise AssertionError("the wait did not end")


class Context:
    """What launch uses of a FleetContext."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.pool = self
        self.settings = Settings.from_environment()

    @asynccontextmanager
    async def client(self, host: Host) -> AsyncIterator[Agent]:
        yield self.agent


def _status(state: ServiceState, **figures: Any) -> ServiceStatus:
    return ServiceStatus(spec=SPEC, state=state, desired=DesiredState.RUNNING, **figures)


def _put_off(count: int) -> list[ServiceStatus]:
    starts = range(1_000, 1_000 + count)
    return [_status(ServiceState.BACKING_OFF, problem=TAKEN, next_start_unix_ms=start) for start in starts]


async def test_a_start_that_is_refused_again_and_again_ends_the_wait_with_its_reason() -> None:
    agent = Agent(_put_off(REFUSALS_BEFORE_GIVING_UP))
    with pytest.raises(LaunchFailed, match="port 8100 is taken by pid 7") as caught:
        async for _ in launch(Context(agent), HOST, SPEC):  # type: ignore[arg-type]
            pass
    assert (caught.value.problem.code, caught.value.problem.remedy) == ("port-taken", "--port N")


async def test_the_same_refusal_told_twice_counts_once_and_a_late_start_is_a_success() -> None:
    refused = _put_off(REFUSALS_BEFORE_GIVING_UP - 1)
    agent = Agent([*refused, *refused, _status(ServiceState.STARTING), _status(ServiceState.READY)])
    events = [event async for event in launch(Context(agent), HOST, SPEC)]  # type: ignore[arg-type]
    assert agent.told == len(agent.statuses)
    assert any("port 8100 is taken" in event.message for event in events)


def _beside(state: ServiceState, problem: Problem | None = None, port: int = 8100) -> ServiceStatus:
    """The old server is ready; the new one is on its way beside it."""
    successor = Successor(spec=SPEC, spec_digest="new", state=state, port=port, problem=problem)
    return _status(ServiceState.READY, spec_digest="old", successor=successor)


async def test_the_old_server_that_is_ready_is_not_taken_for_the_new_one() -> None:
    loading = Problem(code="not-ready", message="it is still loading (HTTP 503)")
    first = _beside(ServiceState.STARTING, port=20001)
    told = [
        first,
        _beside(ServiceState.STARTING, loading, port=20001),
        _status(ServiceState.STARTING, spec_digest="new"),
    ]
    agent = Agent([*told, _status(ServiceState.READY, spec_digest="new")], applied=first)
    events = [event.message async for event in launch(Context(agent), HOST, SPEC)]  # type: ignore[arg-type]
    assert agent.told == len(agent.statuses)
    assert "tiny starts beside the old server, for a trial on port 20001: it is still loading (HTTP 503)" in events


async def test_a_successor_that_is_given_up_ends_the_wait_with_its_last_words() -> None:
    problem = Problem(code="exited", message="it ended with exit code 3", tail=("no luck",))
    agent = Agent(
        [_beside(ServiceState.STARTING), _beside(ServiceState.FAILED, problem)], _beside(ServiceState.STARTING)
    )
    with pytest.raises(LaunchFailed, match="tiny's new server: it ended with exit code 3") as caught:
        async for _ in launch(Context(agent), HOST, SPEC):  # type: ignore[arg-type]
            pass
    assert (caught.value.problem.code, caught.value.problem.tail) == ("exited", ("no luck",))
    assert caught.value.problem.remedy == "fleet logs tiny shows what it printed"


async def test_a_successor_of_somebody_else_is_not_waited_for() -> None:
    agent = Agent([_status(ServiceState.READY, spec_digest="other")], _beside(ServiceState.STARTING))
    with pytest.raises(LaunchFailed, match="deployed differently by someone else"):
        async for _ in launch(Context(agent), HOST, SPEC):  # type: ignore[arg-type]
            pass


async def test_why_the_old_server_ended_first_is_said() -> None:
    applied = _status(ServiceState.STARTING, ended_first_because="needs 1.2 GB more than is free")
    agent = Agent([_status(ServiceState.READY)], applied)
    events = [event.message async for event in launch(Context(agent), HOST, SPEC)]  # type: ignore[arg-type]
    assert "the old server of tiny ended first: needs 1.2 GB more than is free" in events
