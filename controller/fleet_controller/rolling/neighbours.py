"""How rollouts stand to one another: whose place a new one takes, and which one must be undone before another."""

from collections.abc import Collection, Iterable

from fleet_controller.domain.rollouts import HostPhase, Rollout, RolloutState


def takes_place(other: Rollout, service: str, names: Collection[str], kept: Collection[str]) -> bool:
    """Whether a new rollout of `service` is all that an undo of `other` would need, so that `other` may be forgotten.

    `names` are the hosts that it changes, `kept` those that have what it wants already. Where this is False, hosts
    would be left that no undo reaches any more.
    """
    reached = {*names, *(host.host for host in other.of(HostPhase.CHANGED) if host.host in kept)}
    return other.service == service and all(host.host in reached for host in other.hosts if host.touched)


def later_one(rollout: Rollout, others: Iterable[Rollout], names: Collection[str]) -> Rollout | None:
    """A later rollout of the service that stands on one of these hosts: what it put there is what was wanted last."""
    ended = (RolloutState.UNDONE, RolloutState.SUPERSEDED)  # whoever superseded one stands on its hosts instead
    for other in others:
        later = other.number > rollout.number and other.service == rollout.service and other.state not in ended
        if later and any(host.host in names for host in other.hosts if host.touched):
            return other
    return None
