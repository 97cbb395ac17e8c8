"""A service that has the wanted spec may still be starting, begun by a controller that died: it is waited for."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.plan import DeployRequest, HostPlan, PlanAction
from fleet_controller.domain.services import DesiredState, ServiceSpec, ServiceState, ServiceStatus
from fleet_controller.domain.steps import JobSpec
from fleet_controller.operations import deploy
from fleet_controller.operations.launch import LaunchFailed, until_ready
from fleet_controller.operations.planning import PlannedHost, StoredPlan
from fleet_controller.planning.plan import PlannedDeployment
from fleet_controller.settings import Settings
from fleet_inventory.hosts import Host

HOST = Host.model_validate({"name": "desk", "address": "localhost", "transport": "local"})
SPEC = ServiceSpec(name="tiny", port=8100)
STARTING, READY = (
    ServiceStatus(spec=SPEC, state=state, desired=DesiredState.RUNNING)
    for state in (ServiceState.STARTING, ServiceState.READY)
)


class Context:
    """What until_ready uses of a FleetContext; `told` counts the statuses that were looked at."""

    def __init__(self, *statuses: ServiceStatus) -> None:
        self.statuses, self.told, self.pool = statuses, 0, self
        self.settings = Settings.from_environment()

    def client(self, host: Host) -> "Context":
        return self

    async def __aenter__(self) -> "Context":
        return self

    async def __aexit__(self, *error: object) -> None: ...

    async def watch_service(self, name: str) -> AsyncIterator[ServiceStatus]:
        for status in self.statuses:
            self.told += 1
            yield status
        raise AssertionError("the wait did not end")


async def test_the_question_comes_after_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(STARTING, STARTING, READY)
    asked_after: list[int] = []
    smoke = JobSpec(job_id="j", title="smoke test", steps=())
    kept = PlannedDeployment(plan=HostPlan(host="desk", action=PlanAction.KEEP, service=SPEC), smoke_test=smoke)

    async def nothing(*_: Any) -> AsyncIterator[HostEvent]:
        return
        yield  # what makes it a generator

    async def recheck(*_: Any) -> PlannedDeployment:
        return kept

    async def ask(*_: Any) -> AsyncIterator[HostEvent]:
        asked_after.append(context.told)
        yield HostEvent(host="desk", stage="smoke")

    async def observe(*_: Any) -> None: ...

    monkeypatch.setattr(deploy, "_join_earlier", nothing)
    monkeypatch.setattr(deploy, "_recheck", recheck)
    monkeypatch.setattr(deploy, "run_job", ask)
    monkeypatch.setattr(deploy, "observe_memory", observe)
    planned = PlannedHost(deployment=kept)
    plan = StoredPlan(plan_id="p", request=DeployRequest(), hosts=(planned,))
    events = [event async for event in deploy._deploy(context, HOST, planned, plan, SPEC)]  # type: ignore[arg-type]
    assert asked_after == [3]
    assert events[-1].done and events[-1].problem is None


async def test_what_will_not_get_ready_is_told() -> None:
    failed = ServiceStatus(spec=SPEC, state=ServiceState.FAILED, desired=DesiredState.RUNNING, last_exit_code=3)
    with pytest.raises(LaunchFailed, match="exit code 3"):
        async for _ in until_ready(Context(STARTING, failed), HOST, "tiny"):  # type: ignore[arg-type]
            pass
