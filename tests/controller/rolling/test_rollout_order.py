"""The order of a rollout, whatever its hosts do: canaries alone first, waves one after another, stopped in time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_controller.domain.rollouts import HostPhase, Rollout, RolloutHost, RolloutState, Strategy
from fleet_controller.rolling.next_step import caught_up, hosts_to_catch_up, interrupted, next_step, resumed, why_stop
from fleet_controller.rolling.waves import WaveError, default_canaries, waves_of

NAMES = [f"h{number}" for number in range(12)]


def rollout(strategy: Strategy, hosts: list[str]) -> Rollout:
    waves = waves_of(hosts, {}, strategy)
    return Rollout(
        number=1, plan_id="p", title="t", service="s", strategy=strategy,
        hosts=tuple(RolloutHost(host=name, wave=waves[name]) for name in hosts),
    )  # fmt: skip


def put(found: Rollout, name: str, phase: HostPhase) -> Rollout:
    hosts = tuple(host.model_copy(update={"phase": phase}) if host.host == name else host for host in found.hosts)
    return found.model_copy(update={"hosts": hosts})


def test_waves_are_shares_of_the_hosts_after_the_canaries() -> None:
    waves = waves_of(NAMES[:9], {}, Strategy(canaries=("h3",), wave_percent=25))
    assert [waves[name] for name in NAMES[:9]] == [1, 1, 2, 0, 2, 3, 3, 4, 4]


def test_waves_by_label_come_in_the_order_of_its_values() -> None:
    labels = {"h0": {"room": "10"}, "h1": {"room": "2"}, "h2": {"room": "attic"}, "h3": {"room": "2"}}
    waves = waves_of(NAMES[:4], labels, Strategy(wave_label="room"))
    assert waves == {"h0": 1, "h1": 0, "h2": 2, "h3": 0}


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        (Strategy(canaries=("x",)), "canary x is none"),
        (Strategy(wave_percent=0), "more than 0 %"),
        (Strategy(wave_percent=101), "at most 100 %"),
        (Strategy(wave_label="room"), "has no label room"),
    ],
)
def test_a_strategy_that_does_not_fit_says_so(strategy: Strategy, words: str) -> None:
    with pytest.raises(WaveError, match=words):
        waves_of(NAMES[:3], {}, strategy)


def test_each_kind_of_machine_has_a_canary_of_its_own() -> None:
    kinds = {"h0": "cuda", "h1": "metal", "h2": "cuda", "h3": "metal"}
    assert default_canaries(NAMES[:4], "", kinds) == ("h0", "h1")
    assert default_canaries(NAMES[:4], "none", kinds) == ()
    assert default_canaries(NAMES[:4], "h2, h3", kinds) == ("h2", "h3")
    assert default_canaries(NAMES[:1], "", kinds) == ()
    assert default_canaries(NAMES[:2], "", kinds) == ()  # one of each: there is nobody to prove anything for


strategies = st.builds(
    Strategy,
    canaries=st.lists(st.sampled_from(NAMES[:4]), max_size=2, unique=True).map(tuple),
    wave_percent=st.sampled_from([10.0, 25.0, 50.0, 100.0]),
    max_unavailable=st.integers(0, 3),
    max_failures=st.integers(0, 3),
    catch_up=st.booleans(),
)
ENDS = st.sampled_from([HostPhase.CHANGED, HostPhase.CHANGED, HostPhase.CHANGED, HostPhase.FAILED, HostPhase.AWAY])


@given(strategies, st.integers(4, 12), st.data())
def test_any_rollout_keeps_its_promises(strategy: Strategy, count: int, data: st.DataObject) -> None:
    found, begun = rollout(strategy, NAMES[:count]), []
    for _ in range(200):
        step = next_step(found)
        assert not (step.begin and step.state)
        if step.state is not None:
            break
        for name in step.begin:
            host = next(one for one in found.hosts if one.host == name)
            assert host.phase is HostPhase.WAITING
            earlier = [one for one in found.hosts if one.wave < host.wave]
            assert all(one.phase not in (HostPhase.WAITING, HostPhase.CHANGING) for one in earlier)
            assert why_stop(found) == ""
            found = put(found, name, HostPhase.CHANGING)
            begun.append(name)
        under_way = [one.host for one in found.of(HostPhase.CHANGING)]
        assert len(under_way) <= (strategy.max_unavailable or count)
        assert under_way, "it waits for nobody"
        found = put(found, data.draw(st.sampled_from(under_way)), data.draw(ENDS))
        if data.draw(st.booleans()):
            found = interrupted(found)  # the controller dies
    assert step.state in (RolloutState.DONE, RolloutState.STOPPED)
    failed = len(found.of(HostPhase.FAILED)) + (0 if strategy.catch_up else len(found.of(HostPhase.AWAY)))
    unproven = [host for host in found.of(HostPhase.AWAY) if host.host in strategy.canaries]
    if step.state is RolloutState.DONE:
        assert failed <= strategy.max_failures
        assert not unproven
        assert not found.of(HostPhase.WAITING)
        assert set(begun) == set(NAMES[:count])
    else:
        assert failed > 0 or unproven
        assert step.reason


def test_a_failed_canary_stops_whatever_may_fail() -> None:
    found = put(rollout(Strategy(canaries=("h0",), max_failures=5), NAMES[:4]), "h0", HostPhase.FAILED)
    step = next_step(found)
    assert (step.state, step.reason) == (RolloutState.STOPPED, "canary h0 failed")


def test_a_canary_that_is_away_proves_nothing_for_the_others() -> None:
    found = put(rollout(Strategy(canaries=("h0",), catch_up=True), NAMES[:4]), "h0", HostPhase.AWAY)
    step = next_step(found)
    assert (step.begin, step.state, step.reason) == ((), RolloutState.STOPPED, "canary h0 is away")


def test_hosts_under_way_end_before_a_stopped_rollout_is_over() -> None:
    found = rollout(Strategy(), NAMES[:3])
    for name in NAMES[:3]:
        found = put(found, name, HostPhase.CHANGING)
    found = put(found, "h0", HostPhase.FAILED)
    assert next_step(found).state is RolloutState.STOPPED
    assert len(found.of(HostPhase.CHANGING)) == 2


def test_resuming_tries_again_what_failed_and_nothing_else() -> None:
    found = rollout(Strategy(), NAMES[:4])
    for name, phase in zip(
        NAMES, (HostPhase.CHANGED, HostPhase.FAILED, HostPhase.AWAY, HostPhase.WAITING), strict=False
    ):
        found = put(found, name, phase)
    again = resumed(found.model_copy(update={"state": RolloutState.STOPPED, "reason": "h1 failed"}))
    assert [host.phase for host in again.hosts] == [HostPhase.CHANGED, *[HostPhase.WAITING] * 3]
    assert (again.state, again.reason) == (RolloutState.RUNNING, "")
    assert next_step(again).begin == ("h1", "h2", "h3")


def test_hosts_that_catch_up_are_no_failures() -> None:
    found = put(rollout(Strategy(catch_up=True), NAMES[:2]), "h0", HostPhase.AWAY)
    found = put(found, "h1", HostPhase.CHANGED)
    step = next_step(found)
    assert (step.state, step.reason) == (RolloutState.DONE, "h0 will catch up")
    assert found.summary() == "1 of 2 hosts changed, 1 away"


def over_but_away(*away: str, **fields: object) -> Rollout:
    found = rollout(Strategy(catch_up=True), NAMES[:4])
    for name in NAMES[:4]:
        found = put(found, name, HostPhase.AWAY if name in away else HostPhase.CHANGED)
    return found.model_copy(update={"state": RolloutState.DONE, **fields})


def test_hosts_that_come_back_are_changed_and_what_failed_is_not_tried_again() -> None:
    found = put(over_but_away("h1", "h2"), "h3", HostPhase.FAILED)
    found = found.model_copy(update={"strategy": Strategy(catch_up=True, max_failures=1)})
    assert hosts_to_catch_up(found, [found]) == ("h1", "h2")
    on = caught_up(found, {"h2", "h3"})
    assert on.state is RolloutState.RUNNING
    assert [host.phase for host in on.hosts] == [
        HostPhase.CHANGED, HostPhase.AWAY, HostPhase.WAITING, HostPhase.FAILED
    ]  # fmt: skip
    assert next_step(on).begin == ("h2",)
    over = next_step(put(on, "h2", HostPhase.CHANGED))
    assert (over.state, over.reason) == (RolloutState.DONE, "h1 will catch up")
    assert caught_up(found, {"h3"}) == found


@pytest.mark.parametrize("state", [state for state in RolloutState if state is not RolloutState.DONE])
def test_only_a_rollout_that_is_done_catches_up(state: RolloutState) -> None:
    assert hosts_to_catch_up(over_but_away("h1", state=state), []) == ()


def test_nobody_catches_up_who_was_not_asked_to() -> None:
    assert hosts_to_catch_up(over_but_away("h1", strategy=Strategy()), []) == ()


def test_a_host_belongs_to_the_last_rollout_of_its_service_and_to_one_that_is_not_over() -> None:
    found = over_but_away("h1", "h2")
    later = over_but_away("h1", number=2)
    assert hosts_to_catch_up(found, [later, found]) == ()
    assert hosts_to_catch_up(found, [later.model_copy(update={"service": "other"}), found]) == ("h1", "h2")
    only_h1 = later.model_copy(update={"hosts": later.hosts[1:2], "state": RolloutState.UNDONE})
    assert hosts_to_catch_up(found, [only_h1, found]) == ("h2",)
    elsewhere = only_h1.model_copy(update={"service": "other", "state": RolloutState.PAUSED, "number": 0})
    assert hosts_to_catch_up(found, [elsewhere, found]) == ("h2",)
