"""Someone waits at a terminal for a start that the agent puts off again and again: the wait ends and says why."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fleet_controller.domain.base import Problem
from fleet_controller.domain.services import DesiredState, ServiceSpec, ServiceState, ServiceStatus
from fleet_controller.domain.steps import ToolRef
from fleet_controller.operations.launch import REFUSALS_BEFORE_GIVING_UP, LaunchFailed, launch
from fleet_inventory.hosts import Host

HOST = Host.model_validate({"name": "desk", "address": "localhost", "transport": "local"})
SPEC = ServiceSpec(name="tiny", backend="llama.cpp", tool=ToolRef(name="bin/llama-server"), port=8100)
TAKEN = Problem(code="port-taken", message="port 8100 is taken by pid 7", remedy="--port N")


class Agent:
    """Tells the given statuses, then nothing more: whoever still waits would wait for ever."""

    def __init__(self, statuses: list[ServiceStatus]) -> None:
        self.statuses = statuses
        self.told = 0

    async def apply_service(self, spec: ServiceSpec, keep_former: bool = False) -> ServiceStatus:
        return _status(ServiceState.STARTING)

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
