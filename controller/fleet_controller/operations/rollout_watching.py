"""Looking on at a rollout that another process carries out: what the database says of it, until nobody is at it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from fleet_controller.domain.base import Problem
from fleet_controller.domain.events import HostEvent
from fleet_controller.domain.rollouts import HostPhase, Rollout, RolloutHost
from fleet_controller.operations.problems import OperationError
from fleet_controller.operations.rollout_carrier import POLL_SECONDS
from fleet_controller.rolling.store import RolloutStore

_ENDED = (HostPhase.CHANGED, HostPhase.FAILED, HostPhase.AWAY)


async def look_on(store: RolloutStore, number: int) -> AsyncGenerator[HostEvent]:
    """Each host's phases, and its last event when it has ended or nobody goes on. Changes nothing.

    Raises OperationError where nobody carries it out.
    """
    if not store.is_carried_out(number):
        message = f"rollout {number} was cut off: nobody carries it out"
        raise OperationError("rollout-cut-off", message, f"fleet rollout resume {number}")
    told: dict[str, HostPhase] = {}
    while True:
        going_on = store.is_carried_out(number)  # asked first: what is kept after that is what there will be
        now = store.get(number)
        assert now is not None
        for host in now.hosts:
            if told.get(host.host) is not host.phase:
                told[host.host] = host.phase
                yield _event(host)
        if not going_on:
            break
        await asyncio.sleep(POLL_SECONDS)
    for host in now.hosts:
        if host.phase not in _ENDED:
            yield _left(now, host)


def _event(host: RolloutHost) -> HostEvent:
    phase, ended = host.phase.value, host.phase in _ENDED
    return HostEvent(
        host=host.host, stage=phase, message=phase, done=ended, problem=host.problem if ended else None,
        changed=host.phase is HostPhase.CHANGED,
    )  # fmt: skip


def _left(rollout: Rollout, host: RolloutHost) -> HostEvent:
    why = f"{rollout.state.value}: {rollout.reason}" if rollout.reason else rollout.state.value
    problem = Problem(
        code="rollout-left", message=f"{host.phase.value}; the rollout is {why}",
        remedy=f"fleet rollout show {rollout.number}",
    )  # fmt: skip
    return HostEvent(host=host.host, stage="rollout", done=True, problem=problem)
