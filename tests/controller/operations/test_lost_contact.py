"""A host that is lost in the middle of a change: waited for by contact, then away; the rollout goes on without it."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from fleet_controller.domain.jobs import JobEvent, JobState
from fleet_controller.domain.services import DesiredState, ServiceSpec, ServiceState, ServiceStatus
from fleet_controller.operations.contact import ask
from fleet_controller.operations.launch import until_ready
from fleet_controller.settings import HOST_PATIENCE_SECONDS, Settings
from fleet_controller.transport import HostUnreachable, NoAgent
from fleet_controller.transport.errors import TransportError
from fleet_controller.transport.pool import AgentPool
from fleet_inventory.hosts import Host

HOST = Host.model_validate({"name": "gpu1", "address": "localhost", "transport": "local"})
SPEC = ServiceSpec(name="tiny", port=8100)
STARTING, READY = (
    ServiceStatus(spec=SPEC, state=state, desired=DesiredState.RUNNING)
    for state in (ServiceState.STARTING, ServiceState.READY)
)
LOST, RESTARTING = HostUnreachable("gpu1", "the connection was lost"), NoAgent("gpu1", "no agent answers")


class Clock:
    """Time passes where somebody sleeps, and nowhere else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now)
        monkeypatch.setattr(asyncio, "sleep", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.now += seconds


class World:
    """A context whose host answers what `contacts` says, one after the other: an error, or statuses and an error."""

    def __init__(self, clock: Clock, *contacts: TransportError | tuple[object, ...], patience_seconds: float = 60.0):
        self.settings = dataclasses.replace(Settings.from_environment(), host_patience_seconds=patience_seconds)
        self.pool, self.clock = self, clock
        self._contacts = iter(contacts)
        self.lasts: Callable[[], None] = lambda: None

    @asynccontextmanager
    async def client(self, host: Host) -> AsyncIterator["World"]:
        contact = next(self._contacts, LOST)
        if isinstance(contact, TransportError):
            raise contact
        self._said = contact
        yield self

    async def watch_service(self, name: str) -> AsyncIterator[ServiceStatus]:
        for said in self._said:
            if isinstance(said, TransportError):
                raise said
            if isinstance(said, float):
                self.clock.now += said
                continue
            assert isinstance(said, ServiceStatus)
            yield said

    async def answer(self) -> str:
        (said,) = self._said
        if isinstance(said, TransportError):
            raise said
        return str(said)


async def test_a_host_without_contact_is_away_after_the_patience_and_not_after_a_launchs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    world = World(clock, (STARTING, LOST))
    with pytest.raises(HostUnreachable, match=r"no contact for 6\d s: the connection was lost"):
        async for _ in until_ready(world, HOST, "tiny"):  # type: ignore[arg-type]
            pass
    assert 60 <= clock.now < 75


async def test_a_silent_start_of_an_hour_is_contact(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lost then is counted from its loss, not from the last word that was said."""
    clock = Clock(monkeypatch)
    world = World(clock, (STARTING, 3600.0, RESTARTING), LOST, RESTARTING, (STARTING, READY))
    async for _ in until_ready(world, HOST, "tiny"):  # type: ignore[arg-type]
        pass
    assert clock.now < 3660


async def test_a_question_is_asked_again_while_the_agent_is_upgraded(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    world = World(clock, (RESTARTING,), RESTARTING, (LOST,), ("yes",))
    assert await ask(world, HOST, World.answer) == "yes"  # type: ignore[arg-type]


async def test_an_agent_that_stays_away_while_its_host_answers_is_no_host_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(Clock(monkeypatch), *[RESTARTING] * 100)
    with pytest.raises(NoAgent, match="no agent answers"):
        await ask(world, HOST, World.answer)  # type: ignore[arg-type]


async def test_a_job_is_followed_by_contact_too(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    clock = Clock(monkeypatch)
    pool = AgentPool(tmp_path)  # type: ignore[arg-type]
    tries = iter([(JobEvent(sequence=1),), (), (JobEvent(sequence=2, state=JobState.SUCCEEDED),)])
    asked_after = []

    class Agent:
        async def watch_job(self, job_id: str, after: int) -> AsyncIterator[JobEvent]:
            asked_after.append(after)
            for event in next(tries):
                yield event
            clock.now += 3600.0  # an hour without a word
            raise RESTARTING

    @asynccontextmanager
    async def client(host: Host) -> AsyncIterator[Agent]:
        yield Agent()

    monkeypatch.setattr(pool, "client", client)
    events = [event async for event in pool.follow_job(HOST, "j", patience_seconds=60.0)]
    assert [event.sequence for event in events] == [1, 2]
    assert asked_after == [0, 1, 1]


@pytest.mark.parametrize(("text", "seconds"), [("5", 5.0), ("0", HOST_PATIENCE_SECONDS), ("x", HOST_PATIENCE_SECONDS)])
def test_the_patience_is_a_setting(monkeypatch: pytest.MonkeyPatch, text: str, seconds: float) -> None:
    monkeypatch.setenv("FLEET_HOST_PATIENCE_SECONDS", text)
    assert Settings.from_environment().host_patience_seconds == seconds
