"""No host is left that no undo reaches, whatever rollouts come after one another."""

from fleet_controller.domain.rollouts import Before, HostPhase, Rollout, RolloutHost, RolloutState, Strategy
from fleet_controller.rolling.neighbours import later_one, takes_place
from fleet_controller.rolling.next_step import resumed

KNOWN = Before()


def rollout(number: int, state: RolloutState, service: str = "m", **phases: HostPhase) -> Rollout:
    """Hosts that wait know nothing of what ran before; all others do."""
    hosts = tuple(
        RolloutHost(host=name, wave=0, phase=phase, before=None if phase is HostPhase.WAITING else KNOWN)
        for name, phase in phases.items()
    )
    return Rollout(
        number=number, plan_id="p", title="t", service=service, strategy=Strategy(), state=state, hosts=hosts
    )


def test_a_place_is_taken_only_with_all_hosts_that_were_touched() -> None:
    cut_off = rollout(
        1, RolloutState.RUNNING, a=HostPhase.CHANGED, b=HostPhase.CHANGING, c=HostPhase.WAITING
    )  # fmt: skip
    assert takes_place(cut_off, "m", ["a", "b"], [])
    assert takes_place(cut_off, "m", ["b"], ["a"])  # a has what is wanted: it comes along as it is
    assert not takes_place(cut_off, "m", ["a"], [])  # nobody would undo b
    assert not takes_place(cut_off, "m", ["a"], ["b"])  # b was cut off, and is proven by nobody
    assert not takes_place(cut_off, "n", ["a", "b"], [])  # another model on the same hosts
    assert takes_place(rollout(1, RolloutState.RUNNING, c=HostPhase.WAITING), "m", [], [])


def test_a_host_that_waits_to_be_tried_again_is_still_to_be_undone() -> None:
    """It failed or went away in the middle, so what was put there may run."""
    found = resumed(rollout(1, RolloutState.STOPPED, a=HostPhase.FAILED, b=HostPhase.WAITING))
    assert [host.touched for host in found.hosts] == [True, False]
    assert not takes_place(found, "m", ["b"], [])
    gone = RolloutHost(host="a", wave=0, phase=HostPhase.AWAY)
    assert not gone.touched
    assert gone.model_copy(update={"before": KNOWN}).touched


def test_what_was_undone_or_superseded_stands_in_nobodys_way() -> None:
    first = rollout(1, RolloutState.DONE, a=HostPhase.CHANGED)
    changed = {"a": HostPhase.CHANGED}
    later = [
        rollout(2, RolloutState.SUPERSEDED, **changed),
        rollout(3, RolloutState.UNDONE, a=HostPhase.UNDONE),
        rollout(4, RolloutState.DONE, "n", **changed),
        rollout(5, RolloutState.DONE, b=HostPhase.CHANGED),
    ]
    assert later_one(first, later, ["a"]) is None
    standing = rollout(6, RolloutState.ABORTED, **changed)
    assert later_one(first, [*later, standing], ["a"]) == standing
    assert later_one(standing, [first, standing], ["a"]) is None
