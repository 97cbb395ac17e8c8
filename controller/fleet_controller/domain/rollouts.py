"""A rollout: one plan carried out on many hosts, in waves, with what ran before on each of them."""

from collections import Counter
from enum import StrEnum

from fleet_controller.domain.base import Frozen, Problem
from fleet_controller.domain.services import ServiceSpec


class Gate(StrEnum):
    """What a canary must show: that it answers, or also that it is as fast as before."""

    HEALTH = "health"
    GOLDEN = "golden"


class Strategy(Frozen):
    """How a rollout goes through its hosts.

    The canaries are the first wave; then come waves of `wave_percent` of the others, or one for each value of the label
    `wave_label`. `max_unavailable` hosts are changed at a time (0 = a whole wave). More than `max_failures` failed
    hosts stop it; a failed canary always does. `catch_up`: hosts that are away are no failures, and changed later.
    """

    canaries: tuple[str, ...] = ()
    gate: Gate = Gate.HEALTH
    golden_threshold: float = 0.05
    wave_percent: float = 100.0
    wave_label: str = ""
    max_unavailable: int = 0
    max_failures: int = 0
    catch_up: bool = False


class RolloutState(StrEnum):
    """The last four are ends; a stopped or paused one can be resumed, and each can be undone."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"  # by its failures
    UNDOING = "undoing"
    DONE = "done"
    ABORTED = "aborted"
    SUPERSEDED = "superseded"  # another rollout went on with its hosts
    UNDONE = "undone"

    @property
    def final(self) -> bool:
        return self in (RolloutState.DONE, RolloutState.ABORTED, RolloutState.SUPERSEDED, RolloutState.UNDONE)


class HostPhase(StrEnum):
    WAITING = "waiting"
    CHANGING = "changing"
    CHANGED = "changed"
    FAILED = "failed"
    AWAY = "away"  # it did not answer; where `before` is known, it went away in the middle
    UNDOING = "undoing"
    UNDONE = "undone"
    UNDO_FAILED = "undo failed"


class Before(Frozen):
    """What ran under the service's name before: nothing (`spec` None), or this, `running` or stopped."""

    spec: ServiceSpec | None = None
    running: bool = False


class RolloutHost(Frozen):
    """One host's part. `before` is None until the host is about to be changed."""

    host: str
    wave: int
    phase: HostPhase = HostPhase.WAITING
    before: Before | None = None
    problem: Problem | None = None
    changed_unix_ms: int = 0

    @property
    def touched(self) -> bool:
        """Whether the host may run something else than before: one that waits to be tried again may, too."""
        idle = self.phase in (HostPhase.WAITING, HostPhase.AWAY)
        return self.before is not None if idle else self.phase is not HostPhase.UNDONE


class Rollout(Frozen):
    """`number` is what a user types; `reason` says why it is in its state where that is not plain."""

    number: int
    plan_id: str
    title: str
    service: str
    strategy: Strategy
    state: RolloutState = RolloutState.RUNNING
    reason: str = ""
    created_unix_ms: int = 0
    hosts: tuple[RolloutHost, ...] = ()

    def of(self, phase: HostPhase) -> tuple[RolloutHost, ...]:
        return tuple(host for host in self.hosts if host.phase is phase)

    @property
    def waves(self) -> int:
        return 1 + max((host.wave for host in self.hosts), default=-1)

    def summary(self) -> str:
        """As "3 of 5 hosts changed, 1 failed, 1 waiting"."""
        counts = Counter(host.phase for host in self.hosts)
        rest = [f"{counts[phase]} {phase.value}" for phase in HostPhase if counts[phase] and phase is not _CHANGED]
        return ", ".join([f"{counts[_CHANGED]} of {len(self.hosts)} hosts changed", *rest])


_CHANGED = HostPhase.CHANGED
