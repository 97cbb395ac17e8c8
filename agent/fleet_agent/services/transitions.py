"""The states of a service as a pure function: (condition, event, time) -> condition. No I/O, no clock.

STARTING   -> READY (answers) | BACKING_OFF, FAILED (ended) | STOPPED
READY      -> UNHEALTHY (probes fail) | BACKING_OFF, FAILED | STOPPED
UNHEALTHY  -> READY | BACKING_OFF, FAILED | STOPPED
BACKING_OFF-> STARTING (time is up, or asked again) | BACKING_OFF, FAILED (what comes before a start failed) | STOPPED
FAILED, STOPPED -> STARTING (asked again)
"""

from dataclasses import dataclass, replace

from fleet_agent.services.model import ServiceState

_WITH_PROCESS = (ServiceState.STARTING, ServiceState.READY, ServiceState.UNHEALTHY)


@dataclass(frozen=True)
class RestartPolicy:
    """Delays are seconds. A run shorter than stable_seconds is a quick exit; so many in a row end in FAILED."""

    first_delay_seconds: float = 1.0
    longest_delay_seconds: float = 60.0
    stable_seconds: float = 60.0
    quick_exit_limit: int = 5
    failed_probe_limit: int = 3

    def delay_seconds(self, attempt: int) -> float:
        """1, 2, 4, ... up to the longest; attempt counts from 1."""
        return min(self.first_delay_seconds * 2.0 ** min(max(attempt - 1, 0), 32), self.longest_delay_seconds)


@dataclass(frozen=True)
class Condition:
    """Where a service stands. Times are Unix seconds; started_at and ready_at are of the present or last process."""

    state: ServiceState
    restarts: int = 0
    quick_exits: int = 0
    refusals: int = 0
    failed_probes: int = 0
    ever_ready: bool = False
    started_at: float | None = None
    ready_at: float | None = None
    next_start_at: float | None = None


@dataclass(frozen=True)
class Requested:
    """Somebody wants it to run: the counters begin anew."""


@dataclass(frozen=True)
class Lost:
    """Its process ended while no agent watched (a reboot): nothing is known of why, so it is no strike against it."""


@dataclass(frozen=True)
class Begun:
    """What it needs before its start is being run."""


@dataclass(frozen=True)
class StartFailed:
    """What it needs before its start failed: a strike, however long it took. permanent: as for Exited."""

    permanent: bool = False


@dataclass(frozen=True)
class Spawned:
    """A process of it was started."""


@dataclass(frozen=True)
class Refused:
    """It could not be started now (port taken, device busy, tool missing): waited for, never given up."""


@dataclass(frozen=True)
class ProbeSucceeded:
    """The readiness probe got its answer."""


@dataclass(frozen=True)
class ProbeFailed:
    """It did not."""


@dataclass(frozen=True)
class Exited:
    """The process ended without being asked. permanent: the cause is known, and trying again cannot help."""

    permanent: bool = False


@dataclass(frozen=True)
class Stopped:
    """It was stopped as asked."""


@dataclass(frozen=True)
class Abandoned:
    """It cannot be helped: a process that not even SIGKILL ends, or a defect of ours."""


Event = (
    Abandoned
    | Lost
    | Requested
    | Begun
    | StartFailed
    | Spawned
    | Refused
    | ProbeSucceeded
    | ProbeFailed
    | Exited
    | Stopped
)


class ImpossibleTransitionError(Exception):
    """An event that cannot happen in this state: a defect of the caller."""


def advance(condition: Condition, event: Event, now: float, policy: RestartPolicy) -> Condition:
    """The condition after `event` at Unix time `now`. Raises ImpossibleTransitionError."""
    if isinstance(event, Requested):
        return Condition(ServiceState.STARTING, restarts=condition.restarts)
    if isinstance(event, Lost):
        return Condition(ServiceState.STARTING, restarts=condition.restarts + 1)
    if isinstance(event, Stopped):
        return replace(condition, state=ServiceState.STOPPED, ready_at=None, next_start_at=None, failed_probes=0)
    if isinstance(event, Abandoned):
        return replace(condition, state=ServiceState.FAILED, ready_at=None, next_start_at=None)
    if isinstance(event, (Begun, StartFailed, Spawned, Refused)):
        _demand(condition, event, ServiceState.STARTING, ServiceState.BACKING_OFF)
        return _starting(condition, event, now, policy)
    _demand(condition, event, *_WITH_PROCESS)
    if isinstance(event, ProbeSucceeded):
        ready_at = now if condition.ready_at is None else condition.ready_at
        return replace(condition, state=ServiceState.READY, ready_at=ready_at, failed_probes=0, ever_ready=True)
    if isinstance(event, ProbeFailed):
        return _probe_failed(condition, policy)
    return _exited(condition, event, now, policy)


def _demand(condition: Condition, event: Event, *states: ServiceState) -> None:
    if condition.state not in states:
        raise ImpossibleTransitionError(f"{type(event).__name__} while {condition.state.value}")


def _starting(
    condition: Condition, event: Begun | StartFailed | Spawned | Refused, now: float, policy: RestartPolicy
) -> Condition:
    if isinstance(event, Begun):
        return replace(condition, state=ServiceState.STARTING, next_start_at=None)
    if isinstance(event, StartFailed):
        return _struck(condition, condition.quick_exits + 1, event.permanent, now, policy)
    return _spawned(condition, now) if isinstance(event, Spawned) else _refused(condition, now, policy)


def _spawned(condition: Condition, now: float) -> Condition:
    return replace(
        condition,
        state=ServiceState.STARTING,
        started_at=now,
        ready_at=None,
        next_start_at=None,
        failed_probes=0,
        refusals=0,
    )


def _refused(condition: Condition, now: float, policy: RestartPolicy) -> Condition:
    refusals = condition.refusals + 1
    next_start_at = now + policy.delay_seconds(refusals)
    return replace(condition, state=ServiceState.BACKING_OFF, refusals=refusals, next_start_at=next_start_at)


def _probe_failed(condition: Condition, policy: RestartPolicy) -> Condition:
    if condition.state is not ServiceState.READY:
        return condition
    failed = condition.failed_probes + 1
    state = ServiceState.UNHEALTHY if failed >= policy.failed_probe_limit else ServiceState.READY
    return replace(condition, state=state, failed_probes=failed)


def _exited(condition: Condition, event: Exited, now: float, policy: RestartPolicy) -> Condition:
    ran_seconds = now - condition.started_at if condition.started_at is not None else 0.0
    quick_exits = condition.quick_exits + 1 if ran_seconds < policy.stable_seconds else 0
    return _struck(condition, quick_exits, event.permanent, now, policy)


def _struck(condition: Condition, quick_exits: int, permanent: bool, now: float, policy: RestartPolicy) -> Condition:
    hopeless = permanent and not condition.ever_ready
    ended = replace(condition, quick_exits=quick_exits, ready_at=None, failed_probes=0)
    if hopeless or quick_exits >= policy.quick_exit_limit:
        return replace(ended, state=ServiceState.FAILED, next_start_at=None)
    return replace(
        ended,
        state=ServiceState.BACKING_OFF,
        restarts=condition.restarts + 1,
        next_start_at=now + policy.delay_seconds(quick_exits),
    )
