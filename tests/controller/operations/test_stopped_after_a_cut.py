"""A model that somebody stops after its rollout was cut off: no controller that goes on with the rollout starts it."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from fleet_controller.domain.rollouts import Before, HostPhase, Rollout, RolloutHost, Strategy
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.services import _leave_stopped
from fleet_controller.rolling.store import RolloutStore
from fleet_controller.state import StateDatabase


@pytest.fixture
def store(tmp_path: Path) -> RolloutStore:
    return RolloutStore(StateDatabase(tmp_path / "fleet.db"))


@pytest.fixture
def context(tmp_path: Path, store: RolloutStore) -> FleetContext:
    settings = SimpleNamespace(database_file=tmp_path / "fleet.db")
    return cast(FleetContext, SimpleNamespace(settings=settings, database=StateDatabase(settings.database_file)))


def cut_off(store: RolloutStore) -> int:
    hosts = (
        RolloutHost(host="a", wave=0, phase=HostPhase.CHANGED, before=Before()),
        RolloutHost(host="b", wave=0, phase=HostPhase.CHANGING, before=Before()),
        RolloutHost(host="c", wave=0, phase=HostPhase.CHANGING, before=Before()),
    )
    rollout = Rollout(number=0, plan_id="p", title="deploy m", service="m", strategy=Strategy(), hosts=hosts)
    return store.create(rollout, "{}").number


def phases(store: RolloutStore, number: int) -> list[str]:
    rollout = store.get(number)
    assert rollout is not None
    return [host.phase.value for host in rollout.hosts]


def test_the_host_counts_as_failed_and_says_why(store: RolloutStore, context: FleetContext) -> None:
    number = cut_off(store)
    _leave_stopped(context, "b", ["other", "m"])
    assert phases(store, number) == ["changed", "failed", "changing"]
    rollout = store.get(number)
    assert rollout is not None and rollout.hosts[1].problem is not None
    assert rollout.hosts[1].problem.code == "stopped"


def test_another_service_and_a_rollout_under_way_are_left_alone(store: RolloutStore, context: FleetContext) -> None:
    number = cut_off(store)
    _leave_stopped(context, "b", ["other"])
    with store.carrying_out(number) as ours:
        assert ours
        _leave_stopped(context, "b", ["m"])
    assert phases(store, number) == ["changed", "changing", "changing"]
