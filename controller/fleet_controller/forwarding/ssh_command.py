"""The OpenSSH command of a forward: the same ssh_config, known_hosts, user, port and jump hosts as the controller's."""

import os
from pathlib import Path

from fleet_inventory.hosts import Host

# A cut link is noticed after KEEPALIVE_SECONDS * KEEPALIVE_COUNT, as on the controller's own connections.
KEEPALIVE_SECONDS = 5
KEEPALIVE_COUNT = 3
CONNECT_SECONDS = 10

_OPTIONS = (
    "BatchMode=yes",  # never asks in the background
    "StrictHostKeyChecking=yes",  # whatever ssh_config says, as everywhere in fleet
    "UpdateHostKeys=no",
    "ExitOnForwardFailure=yes",
    f"ServerAliveInterval={KEEPALIVE_SECONDS}",
    f"ServerAliveCountMax={KEEPALIVE_COUNT}",
    f"ConnectTimeout={CONNECT_SECONDS}",
    "ControlMaster=no",  # a connection of its own: ending a shared one would end this one
    "ControlPath=none",
    "RemoteCommand=none",
    "LogLevel=INFO",  # causes.py reads it
)


def forward_command(host: Host, local_port: int, remote_address: str, remote_port: int) -> tuple[str, ...]:
    """Brings `remote_address`:`remote_port`, as the host sees it, to 127.0.0.1:`local_port` here."""
    target = f"[{remote_address}]" if ":" in remote_address else remote_address
    options = [word for option in _OPTIONS for word in ("-o", option)]
    way = f"127.0.0.1:{local_port}:{target}:{remote_port}"
    return ("ssh", *_config(), "-N", "-T", "-a", "-x", *options, "-L", way, *_destination(host))


def reverse_command(host: Host, address: str, port: int, remote_port: int) -> tuple[str, ...]:
    """Brings `address`:`port`, as this machine sees it, to a port of the host's loopback; 0 = a free one, which ssh
    tells.
    """
    target = f"[{address}]" if ":" in address else address
    options = [word for option in _OPTIONS for word in ("-o", option)]
    way = f"127.0.0.1:{remote_port}:{target}:{port}"
    return ("ssh", *_config(), "-N", "-T", "-a", "-x", *options, "-R", way, *_destination(host))


def login_command(host: Host) -> tuple[str, ...]:
    """What a user types to try the same login."""
    return ("ssh", *_config(), *_destination(host))


def _config() -> tuple[str, ...]:
    named = os.environ.get("FLEET_SSH_CONFIG")
    if not named:
        return ()
    path = Path(named).expanduser()
    return ("-F", str(path.absolute()) if path.is_file() else "none")


def _destination(host: Host) -> tuple[str, ...]:
    words = ["-l", host.user] if host.user else []
    words += ["-p", str(host.port)] if host.port else []
    if host.jump is not None:
        words += ["-J", host.jump] if host.jump.lower() not in ("", "none") else ["-o", "ProxyJump=none"]
    return (*words, host.address)
