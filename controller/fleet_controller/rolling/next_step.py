"""What a rollout does next, from what is known of its hosts alone: so that whoever continues it does the same."""

from collections.abc import Collection, Iterable

from fleet_controller.domain.base import Frozen
from fleet_controller.domain.rollouts import HostPhase, Rollout, RolloutHost, RolloutState


class NextStep(Frozen):
    """Hosts to begin now, and the state to go to (None = as it is). Nothing of both: wait for those under way."""

    begin: tuple[str, ...] = ()
    state: RolloutState | None = None
    reason: str = ""


def next_step(rollout: Rollout) -> NextStep:
    """For a rollout that is RUNNING. Hosts under way are never stopped: they end in one phase or the other."""
    stop = why_stop(rollout)
    if stop:
        return NextStep(state=RolloutState.STOPPED, reason=stop)
    under_way = len(rollout.of(HostPhase.CHANGING))
    waiting = rollout.of(HostPhase.WAITING)
    if not waiting:
        return NextStep() if under_way else NextStep(state=RolloutState.DONE, reason=_left(rollout))
    wave = min(host.wave for host in (*waiting, *rollout.of(HostPhase.CHANGING)))
    ready = [host.host for host in waiting if host.wave == wave]
    limit = rollout.strategy.max_unavailable or len(ready) + under_way
    return NextStep(begin=tuple(ready[: max(limit - under_way, 0)]))


def why_stop(rollout: Rollout) -> str:
    """Why no further host may be begun; empty where one may."""
    failed = [host for host in rollout.hosts if _counts_as_failed(rollout, host)]
    canaries = [host.host for host in failed if host.host in rollout.strategy.canaries]
    if canaries:
        return f"canary {', '.join(canaries)} failed"
    away = [host.host for host in rollout.of(HostPhase.AWAY) if host.host in rollout.strategy.canaries]
    if away:  # it may catch up, but until then it proves nothing for the others
        return f"canary {', '.join(away)} is away"
    if len(failed) > rollout.strategy.max_failures:
        names, allowed = ", ".join(host.host for host in failed), rollout.strategy.max_failures
        limit = f", more than the {allowed} that may" if allowed else ""
        return f"{names} failed{limit}"
    return ""


def _counts_as_failed(rollout: Rollout, host: RolloutHost) -> bool:
    away = host.phase is HostPhase.AWAY and not rollout.strategy.catch_up
    return host.phase is HostPhase.FAILED or away


def _left(rollout: Rollout) -> str:
    away = [host.host for host in rollout.of(HostPhase.AWAY)]
    return f"{', '.join(away)} will catch up" if away and rollout.strategy.catch_up else ""


def resumed(rollout: Rollout) -> Rollout:
    """A rollout that goes on: what failed, was away or was cut off is tried again; what is done stays done."""
    again = (HostPhase.FAILED, HostPhase.AWAY, HostPhase.CHANGING)
    hosts = tuple(
        host.model_copy(update={"phase": HostPhase.WAITING, "problem": None}) if host.phase in again else host
        for host in rollout.hosts
    )
    return rollout.model_copy(update={"state": RolloutState.RUNNING, "reason": "", "hosts": hosts})


def hosts_to_catch_up(rollout: Rollout, others: Iterable[Rollout]) -> tuple[str, ...]:
    """Hosts of a rollout that is over which are still to be changed when they answer.

    None where nobody asked for it. A host that a later rollout of the service has is that one's, however it ended;
    one that another rollout has not ended with waits for that.
    """
    if rollout.state is not RolloutState.DONE or not rollout.strategy.catch_up:
        return ()
    others = [other for other in others if other.number != rollout.number]
    later = [other for other in others if other.number > rollout.number and other.service == rollout.service]
    taken = {host.host for other in (*later, *(o for o in others if not o.state.final)) for host in other.hosts}
    return tuple(host.host for host in rollout.of(HostPhase.AWAY) if host.host not in taken)


def caught_up(rollout: Rollout, back: Collection[str]) -> Rollout:
    """The rollout goes on with hosts that were away and are back; what failed stays as it is."""
    hosts = tuple(
        host.model_copy(update={"phase": HostPhase.WAITING, "problem": None})
        if host.phase is HostPhase.AWAY and host.host in back
        else host
        for host in rollout.hosts
    )
    if hosts == rollout.hosts:
        return rollout
    return rollout.model_copy(update={"state": RolloutState.RUNNING, "reason": "", "hosts": hosts})


def interrupted(rollout: Rollout) -> Rollout:
    """A rollout whose controller died: hosts that were under way are begun again, which joins what runs there."""
    hosts = tuple(
        host.model_copy(update={"phase": HostPhase.WAITING}) if host.phase is HostPhase.CHANGING else host
        for host in rollout.hosts
    )
    return rollout.model_copy(update={"hosts": hosts})
