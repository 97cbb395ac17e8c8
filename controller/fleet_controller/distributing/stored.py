"""What a controller stores of a rollout, and another one goes on from."""

from pydantic import Field

from fleet_controller.distributing.messages import FolderSource, HubSource, Peer
from fleet_controller.distributing.model import Fault, Frozen, Member, Topology
from fleet_controller.distributing.slowness import Suspect


class Trial(Frozen):
    """A suspect was moved to the end; whether `successor` does better from the same server decides who is slow.

    Where it does not, either both are slow or the server is: that one is moved as well, and it is the suspect then,
    `instead_of` the first one.
    """

    suspect: Suspect
    successor: str
    since_seconds: float
    instead_of: str = ""


class ConductorState(Frozen):
    """One rollout. topology is None before it began, and once nobody is left."""

    members: tuple[Member, ...]
    head: str
    sources: dict[str, HubSource | FolderSource] = Field(default_factory=dict)  # of a host that has one of its own
    fallback: HubSource | None = None  # for any other head
    topology: Topology | None = None
    sequence: int = 0
    peers: dict[str, Peer] = Field(default_factory=dict)
    faults: dict[str, Fault] = Field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    complete: frozenset[str] = frozenset()
    failed_sources: dict[str, str] = Field(default_factory=dict)  # host -> why
    accused: dict[str, tuple[str, ...]] = Field(default_factory=dict)  # who reported wrong pieces -> of whom
    trial: Trial | None = None
    tried: frozenset[str] = frozenset()
    limited_servers: frozenset[str] = frozenset()
    cleared_servers: frozenset[str] = frozenset()  # who fetched from them was slow from another one, too
    held_bytes: dict[str, int] = Field(default_factory=dict)  # when the topology changed last
    reasons: tuple[str, ...] = ()  # each change of the topology in words, the newest last

    @property
    def finished(self) -> bool:
        """Whether every host that is still there has all files in place."""
        return self.topology is not None and set(self.topology.names) <= self.complete

    @property
    def sourceless(self) -> frozenset[str]:
        """Who reaches no source and needs one."""
        return frozenset(self.failed_sources) - self.complete

    @property
    def stuck(self) -> str:
        """Why nothing can go on without a person: no host reaches a source; empty where it can."""
        if self.topology is None or not set(self.topology.names) <= self.sourceless:
            return ""
        return next(reversed(self.failed_sources.values()))
