"""Forwards of a test, written down in a folder of their own, to hosts that are network namespaces."""

from dataclasses import dataclass, field
from pathlib import Path

from fleet_controller.forwarding.manage import forwards_lock, new_forward, start_forward, stop_forward
from fleet_controller.forwarding.record import Forward, read_forward, record_path
from fleet_controller.forwarding.ssh_command import KEEPALIVE_SECONDS, forward_command
from support.fleet_cli import eventually
from support.namespaces import NamespaceFleet

REMOTE_PORT = 8100
MODEL = "tiny-chat"


@dataclass
class ForwardWorld:
    """`folder` is where the forwards are written down."""

    fleet: NamespaceFleet
    folder: Path
    started: list[Forward] = field(default_factory=list)

    def start(self, host: str, local_port: int, **settings: object) -> Forward:
        """Starts a forward of the host's port 8100; `settings` are those of hosts.yaml."""
        argv = forward_command(self.fleet.host(host, **settings), local_port, "127.0.0.1", REMOTE_PORT)
        # A cut link is noticed sooner than a user's would be.
        patient, quick = (f"ServerAliveInterval={seconds}" for seconds in (KEEPALIVE_SECONDS, 1))
        assert patient in argv
        argv = tuple(quick if word == patient else word for word in argv)
        with forwards_lock(self.folder):
            forward = start_forward(self.folder, new_forward(MODEL, host, local_port, ("127.0.0.1", REMOTE_PORT), argv))
        self.started.append(forward)
        return forward

    def path(self, forward: Forward) -> Path:
        return record_path(self.folder, forward.model, forward.host)

    def now(self, forward: Forward) -> Forward:
        """As it is written down now."""
        found = read_forward(self.path(forward))
        assert found is not None
        return found

    def up(self, forward: Forward, after: Forward | None = None) -> Forward:
        """The forward, once it is up; with `after`, by another ssh than that one's."""

        def look() -> Forward | None:
            found = read_forward(self.path(forward))
            return found if found and found.carries and (after is None or found.ssh != after.ssh) else None

        return eventually(look, f"{forward.name} is up", 90.0)

    def close(self) -> None:
        for forward in self.started:
            latest = read_forward(self.path(forward))
            if latest is not None:
                stop_forward(self.folder, latest)
