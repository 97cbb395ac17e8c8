"""Where each host keeps its agent's socket, remembered between commands."""

from __future__ import annotations

import json
import os
from pathlib import Path

from fleet_inventory.hosts import Host

_WAY_FIELDS = {"transport", "address", "user", "port", "jump", "agent_root"}


def way_to(host: Host) -> str:
    """What leads to a host's agent, as one text: when it changes, the same name means another agent."""
    return host.model_dump_json(include=_WAY_FIELDS, exclude_none=True)


class SocketMemory:
    """Host name -> way and socket path, in a small JSON file that is replaced whole. A broken file counts as empty."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            self._sockets = {str(name): (str(way), str(place)) for name, (way, place) in document["sockets"].items()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            self._sockets = {}

    def get(self, host: Host) -> str:
        """The socket's path on the host; empty where none is known for this way to it."""
        way, place = self._sockets.get(host.name, ("", ""))
        return place if way == way_to(host) else ""

    def put(self, host: Host, socket_path: str) -> None:
        """Remember it; an empty path forgets the host."""
        entry = (way_to(host), socket_path)
        if self._sockets.get(host.name) == entry:
            return
        self._sockets[host.name] = entry
        if not socket_path:
            del self._sockets[host.name]
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
        draft.write_text(json.dumps({"sockets": self._sockets}, indent=1), encoding="utf-8")
        draft.replace(self._path)
