"""Which installs an undo may need."""

from fleet_controller.domain.rollouts import Before, HostPhase, Rollout, RolloutHost, RolloutState, Strategy
from fleet_controller.domain.services import ServiceSpec
from fleet_controller.domain.steps import ToolRef
from fleet_controller.rolling.undo import ways_back


def rollout(number: int, key: str, state: RolloutState = RolloutState.DONE, service: str = "m") -> Rollout:
    spec = ServiceSpec(name=service, tool=ToolRef(install_key=key, name="llama-server")) if key else None
    host = RolloutHost(host="a", wave=0, phase=HostPhase.CHANGED, before=Before(spec=spec, running=True))
    return Rollout(
        number=number, plan_id="p", title="t", service=service, strategy=Strategy(), state=state, hosts=(host,)
    )


def keys(*rollouts: Rollout, host: str = "a") -> list[str]:
    return [way.install_key for way in ways_back(rollouts, host)]


def test_the_last_rollout_of_each_service_counts() -> None:
    assert keys(rollout(3, "new"), rollout(2, "old"), rollout(1, "other", service="n")) == ["new", "other"]
    assert keys(rollout(2, "old"), host="b") == []


def test_an_undone_one_leaves_the_word_to_the_one_before() -> None:
    assert keys(rollout(3, "new", RolloutState.UNDONE), rollout(2, "old")) == ["old"]


def test_where_nothing_ran_before_nothing_is_needed() -> None:
    assert keys(rollout(3, ""), rollout(2, "old")) == []
