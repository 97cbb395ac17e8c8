"""Hosts of a rollout and the tree that the bytes run along."""

from enum import Enum

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Member(Frozen):
    """A host of a rollout, as far as the order of the chain depends on it.

    subnet: any name that hosts of one network share; link_bytes_per_second: measured, None where nobody knows; cache:
    a name that hosts share whose Hugging Face cache is one folder, empty for a cache of its own; slow: known to be so.
    """

    name: str
    subnet: str = ""
    link_bytes_per_second: float | None = None
    wifi: bool = False
    dialable: bool = True
    slow: bool = False
    cache: str = ""

    @property
    def belongs_on_the_tail(self) -> bool:
        """Nobody may wait for it."""
        return self.wifi or self.slow or not self.dialable


class Topology(Frozen):
    """head -> chain[0] -> chain[1] -> ...; each leaf hangs on the head or on one of the chain, and serves nobody.

    So it is a tree by its form: connected, without a cycle, and no leaf has anybody behind it.
    """

    head: str
    chain: tuple[str, ...] = ()
    leaves: dict[str, str] = Field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.head, *self.chain, *self.leaves)

    @property
    def trunk(self) -> tuple[str, ...]:
        """Who may serve: the head and the chain."""
        return (self.head, *self.chain)

    def upstream(self, name: str) -> str | None:
        """Whom a host fetches from; None for the head. Raises KeyError for a host that is not in it."""
        if name == self.head:
            return None
        if name in self.leaves:
            return self.leaves[name]
        if name not in self.chain:
            raise KeyError(name)
        return self.trunk[self.trunk.index(name) - 1]

    def downstream(self, name: str) -> tuple[str, ...]:
        return tuple(other for other in self.names if other != self.head and self.upstream(other) == name)

    def depth(self, name: str) -> int:
        """Hops from the head."""
        upstream = self.upstream(name)
        return 0 if upstream is None else 1 + self.depth(upstream)


class Fault(str, Enum):
    """Why a host hangs on the tail."""

    CORRUPT = "served a wrong piece"
    SLOW = "slow"
    UNREACHABLE = "not reachable for its downstream"
    BAD_SOURCE = "cannot fetch from its source"
    RETURNED = "came back during the rollout"
