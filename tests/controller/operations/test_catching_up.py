"""Which rollouts a resident controller goes on with by itself, and how often it asks a host that stays away."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.rollouts import HostPhase, Rollout, RolloutHost, RolloutState, Strategy
from fleet_controller.operations import catching_up
from fleet_controller.operations.catching_up import SETTLED_SECONDS, CatchUp
from fleet_controller.operations.context import FleetContext
from fleet_controller.rolling.store import RolloutStore
from fleet_controller.settings import Settings
from fleet_controller.transport.errors import HostUnreachable

HOSTS = "hosts:\n  a: {address: 127.0.0.1}\n  b: {address: 127.0.0.1}\n  c: {address: 127.0.0.1}\n"


class Lab:
    """A context whose agents answer where the test says so; what would be carried out is noted."""

    def __init__(self, context: FleetContext, monkeypatch: pytest.MonkeyPatch) -> None:
        self.context, self.store = context, RolloutStore(context.database)
        self.back: set[str] = set()
        self.asked: list[str] = []
        self.carried_out: list[int] = []
        self.undone: list[int] = []
        self.now = 0.0
        self.catch_up = CatchUp(context, lambda: self.now)
        monkeypatch.setattr(context.pool, "client", self._client)
        monkeypatch.setattr(catching_up, "carry_out", self._noted(self.carried_out))
        monkeypatch.setattr(catching_up, "undo", self._noted(self.undone))
        created = itertools.count(1)
        monkeypatch.setattr("fleet_controller.rolling.store._now_ms", lambda: next(created))  # long ago

    def add(self, state: RolloutState, reason: str = "", catch_up: bool = True, **phases: HostPhase) -> int:
        hosts = tuple(RolloutHost(host=name, wave=0, phase=phase) for name, phase in phases.items())
        made = Rollout(
            number=0, plan_id="p", title="deploy m", service=f"m{len(self.store.newest())}", state=state,
            reason=reason, strategy=Strategy(catch_up=catch_up), hosts=hosts,
        )  # fmt: skip
        return self.store.create(made, "{}").number

    async def look(self) -> None:
        await self.catch_up.look()
        while self.catch_up._works:
            await asyncio.gather(*self.catch_up._works.values())

    @staticmethod
    def _noted(numbers: list[int]) -> Any:
        async def note(_: FleetContext, number: int) -> AsyncIterator[HostEvent]:
            numbers.append(number)
            yield HostEvent(host="a", done=True)

        return note

    @asynccontextmanager
    async def _client(self, host: Any) -> AsyncIterator[Any]:
        self.asked.append(host.name)
        if host.name not in self.back:
            raise HostUnreachable(host.name, "it does not answer")

        class Agent:
            async def list_services(self) -> tuple[()]:
                return ()

        yield Agent()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    hosts = tmp_path / "hosts.yaml"
    hosts.write_text(HOSTS)
    context = FleetContext(Settings(hosts, tmp_path / "state", tmp_path / "run", catch_up_seconds=30.0))
    yield Lab(context, monkeypatch)
    context.database.close()


@pytest.mark.parametrize("state", list(RolloutState))
async def test_what_is_cut_off_goes_on_and_what_somebody_ended_is_left_alone(lab: Lab, state: RolloutState) -> None:
    number = lab.add(state, a=HostPhase.CHANGED, b=HostPhase.WAITING)
    await lab.look()
    assert lab.carried_out == ([number] if state is RolloutState.RUNNING else [])
    assert lab.undone == ([number] if state is RolloutState.UNDOING else [])


async def test_an_undo_that_told_its_user_what_it_could_not_do_is_left_to_him(lab: Lab) -> None:
    lab.add(RolloutState.UNDOING, reason="not undone: a", a=HostPhase.UNDO_FAILED)
    await lab.look()
    assert lab.undone == []


async def test_one_that_another_process_carries_out_is_left_to_it(lab: Lab) -> None:
    number = lab.add(RolloutState.RUNNING, a=HostPhase.WAITING)
    with lab.store.carrying_out(number) as ours:
        assert ours
        await lab.look()
    assert lab.carried_out == []
    await lab.look()
    assert lab.carried_out == [number]


async def test_one_that_is_just_being_begun_is_not_taken_for_cut_off(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    number = lab.add(RolloutState.RUNNING, a=HostPhase.WAITING)
    monkeypatch.setattr("time.time", lambda: SETTLED_SECONDS / 2)
    await lab.look()
    assert lab.carried_out == []
    monkeypatch.setattr("time.time", lambda: SETTLED_SECONDS * 2)
    await lab.look()
    assert lab.carried_out == [number]


async def test_hosts_that_are_back_are_changed_and_the_others_asked_again_later(lab: Lab) -> None:
    number = lab.add(RolloutState.DONE, a=HostPhase.AWAY, b=HostPhase.AWAY, c=HostPhase.CHANGED)
    await lab.look()
    assert (sorted(lab.asked), lab.carried_out) == (["a", "b"], [])
    lab.now, lab.back, lab.asked = 31.0, {"b"}, []
    await lab.look()
    assert lab.carried_out == [number]
    found = lab.store.get(number)
    assert found is not None and found.state is RolloutState.RUNNING
    assert {host.host: host.phase for host in found.hosts} == {
        "a": HostPhase.AWAY, "b": HostPhase.WAITING, "c": HostPhase.CHANGED
    }  # fmt: skip


async def test_a_host_that_stays_away_is_asked_less_and_less_often(lab: Lab) -> None:
    lab.add(RolloutState.DONE, a=HostPhase.AWAY)
    asked_at = []
    for lab.now in range(0, 3600, 30):
        await lab.look()
        asked_at += [lab.now] * len(lab.asked)
        lab.asked.clear()
    assert asked_at[:5] == [0, 30, 90, 210, 450]
    assert max(b - a for a, b in itertools.pairwise(asked_at)) == 480


async def test_nobody_is_asked_where_nobody_wanted_it_or_another_rollout_has_the_host(lab: Lab) -> None:
    lab.add(RolloutState.DONE, catch_up=False, a=HostPhase.AWAY)
    lab.add(RolloutState.DONE, b=HostPhase.AWAY)
    lab.add(RolloutState.PAUSED, b=HostPhase.WAITING)
    await lab.look()
    assert (lab.asked, lab.carried_out) == ([], [])


async def test_a_host_that_is_no_longer_in_the_lab_is_forgotten(lab: Lab) -> None:
    lab.add(RolloutState.DONE, gone=HostPhase.AWAY)
    await lab.look()
    assert lab.asked == []
