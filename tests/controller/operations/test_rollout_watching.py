"""Somebody looks on from another terminal: each step is told once, nothing is begun, and the end is told."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_controller.domain.base import Problem
from fleet_controller.domain.rollouts import HostPhase, Rollout, RolloutHost, RolloutState, Strategy
from fleet_controller.operations import rollout_watching
from fleet_controller.operations.problems import OperationError
from fleet_controller.operations.rollout_watching import look_on
from fleet_controller.rolling.store import RolloutStore
from fleet_controller.state import StateDatabase

HOSTS = tuple(RolloutHost(host=name, wave=0) for name in "abc")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RolloutStore]:
    database = StateDatabase(tmp_path / "fleet.db")
    store = RolloutStore(database)
    store.create(Rollout(number=0, plan_id="p", title="t", service="m", strategy=Strategy(), hosts=HOSTS), "{}")
    yield store
    database.close()


async def test_each_step_is_told_once_and_the_end(store: RolloutStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_watching, "POLL_SECONDS", 0.01)
    told: list[tuple[str, str, bool]] = []
    problems: dict[str, str] = {}
    heard = asyncio.Event()

    async def watch() -> None:
        async for event in look_on(store, 1):
            told.append((event.host, event.stage, event.done))
            heard.set()
            if event.problem is not None:
                problems[event.host] = event.problem.message

    async def until(*wanted: tuple[str, str, bool]) -> None:
        while not set(wanted) <= set(told):
            heard.clear()
            await asyncio.wait_for(heard.wait(), 30)

    with store.carrying_out(1):
        watching = asyncio.create_task(watch())
        await until(("c", "waiting", False))
        store.set_host(1, HOSTS[0].model_copy(update={"phase": HostPhase.CHANGING}))
        await until(("a", "changing", False))
        store.set_host(1, HOSTS[0].model_copy(update={"phase": HostPhase.CHANGED}))
        failed = Problem(code="exited", message="it ended")
        store.set_host(1, HOSTS[1].model_copy(update={"phase": HostPhase.FAILED, "problem": failed}))
        await until(("a", "changed", True), ("b", "failed", True))
        store.set_state(1, RolloutState.STOPPED, "b failed")
    await asyncio.wait_for(watching, 10)
    assert len(told) == len(set(told))
    assert told[-1] == ("c", "rollout", True)
    assert problems == {"b": "it ended", "c": "waiting; the rollout is stopped: b failed"}


async def test_one_that_was_cut_off_is_not_gone_on_with(store: RolloutStore) -> None:
    with pytest.raises(OperationError, match="cut off") as refused:
        async for _ in look_on(store, 1):
            pass
    assert refused.value.problem.remedy == "fleet rollout resume 1"
