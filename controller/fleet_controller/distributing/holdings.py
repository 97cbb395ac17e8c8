"""How many bytes each host surely has, so that after a head's death nobody asks the hub for what another one holds.

What hosts tell is up to half a second old, each by another amount, and a relay that has just started counts from
zero while its part lies on the disk.
"""

from collections.abc import Iterable, Mapping

from fleet_controller.distributing import messages


class Holdings:
    """Fed with what relays tell. All figures in bytes of the whole model, from its beginning on.

    remembered: what another controller knew; it holds until a host tells more.
    """

    def __init__(self, remembered: Mapping[str, int]) -> None:
        self._remembered = dict(remembered)
        self._told: dict[str, int] = {}
        self._floor: dict[str, int] = {}  # what somebody got from it
        self._kept: dict[str, int] = {}  # by a process that ended: on the disk, until its successor has looked
        self._arrived: dict[str, tuple[str, int]] = {}  # host -> (its upstream, bytes that came in), as last told
        self._feeds_on: dict[str, str] = {}

    def of(self, name: str) -> int:
        known = (self._told, self._floor, self._kept, self._remembered)
        return max(figures.get(name, 0) for figures in known)

    def of_all(self, names: Iterable[str]) -> dict[str, int]:
        return {name: self.of(name) for name in names}

    def knows(self, name: str) -> bool:
        """Whether the host has told anything yet."""
        return name in self._told or name in self._kept

    def listening(self, name: str) -> None:
        """Another process began on that host."""
        if self.knows(name) or name in self._remembered:
            self._kept[name] = self.of(name)
        for known in (self._told, self._floor, self._arrived, self._feeds_on):
            known.pop(name, None)

    def progress(self, name: str, event: messages.Progress) -> None:
        arrived = event.received_bytes + event.source_bytes
        if arrived:
            self._kept.pop(name, None)
            self._remembered.pop(name, None)
        before = self._arrived.get(name)
        if event.upstream and before is not None and before[0] == event.upstream and arrived > before[1]:
            self._feeds_on[name] = event.upstream
        elif self._feeds_on.get(name) != event.upstream:
            self._feeds_on.pop(name, None)
        self._told[name] = event.verified_bytes
        self._arrived[name] = event.upstream, arrived
        self._raise_floors(name)

    def _raise_floors(self, name: str) -> None:
        """Pieces come in order, so whoever passed on what a host has got last has all before it as well."""
        seen = {name}
        while (server := self._feeds_on.get(name)) is not None and server not in seen:
            self._floor[server] = max(self._floor.get(server, 0), self.of(name))
            seen.add(server)
            name = server

    def damaged(self, name: str) -> None:
        """What it had is not right any more: it tells anew how much is."""
        for known in (self._told, self._floor, self._kept, self._remembered, self._feeds_on):
            known.pop(name, None)
