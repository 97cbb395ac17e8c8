"""Which rollout a command means that names none."""

from typing import Any

import pytest

from fleet_controller.cli.failures import UsageFailure
from fleet_controller.cli.rollout_command import _demand_undoable, _has_hosts_left, _one, _state
from fleet_proto.v1 import controller_pb2


def rollout(number: int, state: str, *phases: str) -> controller_pb2.RolloutInfo:
    hosts = [controller_pb2.RolloutHostInfo(host=f"h{place}", phase=phase) for place, phase in enumerate(phases)]
    return controller_pb2.RolloutInfo(number=number, state=state, hosts=hosts)


class Controller:
    def __init__(self, *newest_first: controller_pb2.RolloutInfo) -> None:
        self.rollouts = newest_first

    async def ListRollouts(self, request: Any) -> controller_pb2.ListRolloutsReply:
        return controller_pb2.ListRolloutsReply(rollouts=self.rollouts)


async def test_resume_means_the_newest_with_hosts_left() -> None:
    undone, done = rollout(4, "undone", "undone", "waiting"), rollout(3, "done", "changed")
    paused, stopped = rollout(2, "paused", "changed", "waiting"), rollout(1, "stopped", "failed")
    controller = Controller(undone, done, paused, stopped)
    assert (await _one(controller, None, _has_hosts_left)).number == 2
    assert (await _one(controller, None)).number == 4
    assert (await _one(Controller(undone, done), None, _has_hosts_left)).number == 4  # which says why it cannot be


def test_only_what_has_no_end_is_cut_off() -> None:
    assert _state(rollout(1, "undoing", "undoing")) == "undoing, cut off"
    ended = rollout(1, "undoing", "undo failed")
    ended.reason = "not undone: h0"
    assert _state(ended) == "undoing (not undone: h0)"


def test_what_is_undone_is_refused_before_anybody_is_asked() -> None:
    for state in ("undone", "superseded"):
        with pytest.raises(UsageFailure, match="nothing to undo"):
            _demand_undoable("undo", rollout(1, state, "undone"))
    _demand_undoable("undo", rollout(1, "undoing", "undo failed"))
