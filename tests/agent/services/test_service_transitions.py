"""The state machine: every state, every event."""

import pytest

from fleet_agent.services.model import ServiceState
from fleet_agent.services.transitions import (
    Abandoned,
    Begun,
    Condition,
    Event,
    Exited,
    ImpossibleTransitionError,
    Lost,
    ProbeFailed,
    ProbeSucceeded,
    Refused,
    Requested,
    RestartPolicy,
    Spawned,
    StartFailed,
    Stopped,
    advance,
)

S = ServiceState
POLICY = RestartPolicy()
EVENTS: tuple[Event, ...] = (
    Requested(), Lost(), Spawned(), Refused(), ProbeSucceeded(), ProbeFailed(), Exited(), Exited(True), Stopped(),
    Abandoned(), Begun(), StartFailed(), StartFailed(True),
)  # fmt: skip

# Where each event leads from each state, columns as in EVENTS; "-": it cannot happen there.
LETTERS = {
    "S": S.STARTING,
    "R": S.READY,
    "U": S.UNHEALTHY,
    "B": S.BACKING_OFF,
    "F": S.FAILED,
    "0": S.STOPPED,
    "-": None,
}
TABLE: dict[ServiceState, str] = {
    S.STARTING: "SSSBRSBF0FSBF",
    S.READY: "SS--RRBF0F---",
    S.UNHEALTHY: "SS--RUBF0F---",
    S.BACKING_OFF: "SSSB----0FSBF",
    S.STOPPED: "SS------0F---",
    S.FAILED: "SS------0F---",
}


def test_the_table_covers_the_closed_set() -> None:
    assert set(TABLE) == set(ServiceState)
    assert {len(row) for row in TABLE.values()} == {len(EVENTS)}


@pytest.mark.parametrize("state", list(ServiceState))
@pytest.mark.parametrize("position", range(len(EVENTS)))
def test_every_event_in_every_state(state: ServiceState, position: int) -> None:
    expected, event = LETTERS[TABLE[state][position]], EVENTS[position]
    condition = Condition(state, started_at=100.0)
    if expected is None:
        with pytest.raises(ImpossibleTransitionError):
            advance(condition, event, 101.0, POLICY)
    else:
        assert advance(condition, event, 101.0, POLICY).state is expected


def run_and_exit(condition: Condition, at: float, lasting: float) -> Condition:
    started = advance(condition, Spawned(), at, POLICY)
    return advance(started, Exited(), at + lasting, POLICY)


def test_delays_double_up_to_the_longest_and_the_limit_ends_them() -> None:
    condition, at, delays = Condition(S.STARTING), 1000.0, []
    while condition.state is not S.FAILED:
        condition = run_and_exit(condition, at, lasting=2.0)
        if condition.next_start_at is not None:
            delays.append(condition.next_start_at - (at + 2.0))
            at = condition.next_start_at
    assert delays == [1.0, 2.0, 4.0, 8.0]
    assert (condition.quick_exits, condition.restarts, condition.next_start_at) == (5, 4, None)
    assert [POLICY.delay_seconds(attempt) for attempt in (6, 7, 8, 5000)] == [32.0, 60.0, 60.0, 60.0]


def test_a_stable_run_forgives_the_quick_exits_before_it() -> None:
    condition = Condition(S.STARTING)
    for at in (0.0, 10.0, 20.0, 30.0):
        condition = run_and_exit(condition, at, lasting=1.0)
    assert condition.quick_exits == 4
    condition = run_and_exit(condition, 100.0, lasting=60.0)
    assert (condition.state, condition.quick_exits, condition.next_start_at) == (S.BACKING_OFF, 0, 161.0)


def test_a_permanent_cause_fails_at_once_unless_it_was_ready_before() -> None:
    started = advance(Condition(S.STARTING), Spawned(), 0.0, POLICY)
    assert advance(started, Exited(permanent=True), 1.0, POLICY).state is S.FAILED
    ready = advance(started, ProbeSucceeded(), 1.0, POLICY)
    assert advance(ready, Exited(permanent=True), 2.0, POLICY).state is S.BACKING_OFF


def test_unhealthy_after_three_failed_probes_in_a_row_only() -> None:
    condition = advance(Condition(S.STARTING, started_at=0.0), ProbeSucceeded(), 5.0, POLICY)
    for event in (ProbeFailed(), ProbeFailed(), ProbeSucceeded(), ProbeFailed(), ProbeFailed()):
        condition = advance(condition, event, 6.0, POLICY)
        assert condition.state is S.READY
    condition = advance(condition, ProbeFailed(), 7.0, POLICY)
    assert condition.state is S.UNHEALTHY
    assert advance(condition, ProbeSucceeded(), 8.0, POLICY).ready_at == 5.0


def test_refusals_are_never_given_up_and_a_start_ends_their_count() -> None:
    condition = Condition(S.STARTING)
    for _ in range(20):
        condition = advance(condition, Refused(), 0.0, POLICY)
    assert (condition.state, condition.next_start_at, condition.quick_exits) == (S.BACKING_OFF, 60.0, 0)
    assert advance(condition, Spawned(), 60.0, POLICY).refusals == 0


def test_loss_without_an_agent_is_no_strike() -> None:
    lost = advance(Condition(S.READY, restarts=2, quick_exits=4, started_at=0.0), Lost(), 1.0, POLICY)
    assert (lost.state, lost.restarts, lost.quick_exits) == (S.STARTING, 3, 0)


def test_a_start_that_fails_before_it_is_a_strike_however_long_it_took() -> None:
    condition, at = Condition(S.STARTING, started_at=0.0), 1000.0
    for _ in range(POLICY.quick_exit_limit):
        begun = advance(condition, Begun(), at, POLICY)
        assert (begun.state, begun.next_start_at) == (S.STARTING, None)
        condition = advance(begun, StartFailed(), at + 600.0, POLICY)
        at += 700.0
    assert (condition.state, condition.restarts) == (S.FAILED, POLICY.quick_exit_limit - 1)
