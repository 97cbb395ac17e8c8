"""Logging in over SSH: the way through jump hosts, and whom to believe there.

~/.ssh/config and /etc/ssh/ssh_config count (FLEET_SSH_CONFIG names another file): HostName, Port, User, IdentityFile,
IdentityAgent, ProxyJump, ProxyCommand, UserKnownHostsFile, HostKeyAlias. Host keys are always verified, whatever these
files say: `StrictHostKeyChecking no` and `UserKnownHostsFile none` change nothing here.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from fleet_controller.domain.events import HostKeyQuestion
from fleet_controller.transport.errors import (
    HostKeyMismatch,
    HostKeyUnknown,
    HostUnreachable,
    LoginRefused,
    TransportError,
)
from fleet_controller.transport.known_hosts import (
    GLOBAL_FILES,
    SSH_PORT,
    USER_FILES,
    KnownHosts,
    host_key_algorithms,
    known_hosts_line,
)
from fleet_inventory.hosts import Host

SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
CONNECT_TIMEOUT_SECONDS = 10.0
LOGIN_TIMEOUT_SECONDS = 20.0
# A cut link is noticed after KEEPALIVE_INTERVAL_SECONDS * KEEPALIVE_COUNT.
KEEPALIVE_INTERVAL_SECONDS = 5.0
KEEPALIVE_COUNT = 3


def ssh_config_files() -> list[str]:
    """The ssh_configs to read, first one first, since the first value wins: the user's, then the system's.

    FLEET_SSH_CONFIG names another file and, like `ssh -F`, leaves the system's out.
    """
    named = os.environ.get("FLEET_SSH_CONFIG")
    files = [Path(named).expanduser()] if named else [Path.home() / ".ssh" / "config", SYSTEM_CONFIG]
    return [str(path) for path in files if path.is_file() and os.access(path, os.R_OK)]


@dataclass(frozen=True)
class Hop:
    """One machine on the way to a host. None leaves the choice to ssh_config."""

    alias: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Hop:
        """From ProxyJump's `[user@]host[:port]`, `ssh://` and [v6] addresses included."""
        user, _, place = text.removeprefix("ssh://").rpartition("@")
        if place.startswith("["):
            name, _, rest = place[1:].partition("]")
            port = rest.removeprefix(":")
        else:
            name, _, port = place.partition(":") if place.count(":") == 1 else (place, "", "")
        return cls(name, user or None, int(port) if port else None)


class _Verifier(asyncssh.SSHClient):
    """Remembers the key that asyncssh could not match, and always says no."""

    def __init__(self) -> None:
        self.offered: asyncssh.SSHKey | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.offered = key
        return False


async def log_in(host: Host) -> list[asyncssh.SSHClientConnection]:
    """Connections to the jump hosts of a host and to itself, in that order.

    Raises HostUnreachable, HostKeyUnknown, HostKeyMismatch, LoginRefused; then nothing stays open.
    """
    connections: list[asyncssh.SSHClientConnection] = []
    try:
        for hop in await _hops(host):
            connections.append(await _connect_hop(host.name, hop, connections[-1] if connections else None))
    except BaseException:
        for connection in reversed(connections):
            connection.abort()
        raise
    return connections


async def _hops(host: Host) -> list[Hop]:
    """The machines to log in to, the host itself last. Raises HostUnreachable for an ssh_config that says nonsense."""
    target = Hop(host.address, host.user, host.port)
    try:
        return [*await _way(target, host.jump, set()), target]
    except (ValueError, OSError, asyncssh.Error) as error:
        message = f"ssh_config, or `jump` in hosts.yaml, cannot be used: {error}"
        remedy = "correct it, or name another file in FLEET_SSH_CONFIG"
        raise HostUnreachable(host.name, message, remedy, "bad-ssh-config") from None


async def _way(target: Hop, jump: str | None, seen: set[str]) -> list[Hop]:
    """The jump hosts to a target, first one first. `jump` (hosts.yaml) wins over ProxyJump."""
    text = jump if jump is not None else (await _settings(target)).tunnel
    if not isinstance(text, str) or text.lower() in ("", "none") or target.alias in seen:
        return []
    seen.add(target.alias)
    hops = [Hop.parse(part.strip()) for part in text.split(",")]
    # Like OpenSSH: the first jump host may itself be behind one; the others are reached through their predecessor.
    return [*await _way(hops[0], None, seen), *hops]


async def _settings(hop: Hop) -> Any:
    """What ssh_config says about a hop; loads no key."""
    given: dict[str, Any] = {"username": hop.user} if hop.user else {}
    if hop.port:
        given["port"] = hop.port
    return await asyncssh.SSHClientConnectionOptions.construct(
        host=hop.alias, config=ssh_config_files(), known_hosts=None, client_keys=None, agent_path=None, **given
    )


async def dialled_name(host: Host) -> str:
    """The name or address that a connection to a host goes to: ssh_config's HostName, else what hosts.yaml says."""
    try:
        return str((await _settings(Hop(host.address, host.user, host.port))).host)
    except (ValueError, OSError, asyncssh.Error):
        return host.address


def _known_hosts(settings: Any) -> tuple[KnownHosts, str]:
    """The known hosts for a hop, and the file a new line belongs to."""
    tokens = _tokens(settings)
    named = settings.config.get("UserKnownHostsFile", USER_FILES)
    user_files = [_expand(file, tokens) for file in named if file != "none"] or list(USER_FILES)
    global_files = [file for file in settings.config.get("GlobalKnownHostsFile", GLOBAL_FILES) if file != "none"]
    alias = settings.host_key_alias
    known = KnownHosts([*user_files, *global_files], alias or settings.host, SSH_PORT if alias else settings.port)
    return known, str(Path(user_files[0]).expanduser())


def _tokens(settings: Any) -> dict[str, str]:
    """ssh_config(5)'s tokens for file names."""
    return {
        "%%": "%", "%d": str(Path.home()), "%h": settings.host, "%n": settings.orig_host, "%p": str(settings.port),
        "%r": settings.username, "%k": settings.host_key_alias or settings.orig_host,
    }  # fmt: skip


def _expand(text: str, tokens: dict[str, str]) -> str:
    return re.sub(r"%.", lambda match: tokens.get(match[0], match[0]), text)


async def _connect_hop(
    host: str, hop: Hop, tunnel: asyncssh.SSHClientConnection | None
) -> asyncssh.SSHClientConnection:
    verifier = _Verifier()
    try:
        settings = await _settings(hop)
        known, path = await asyncio.to_thread(_known_hosts, settings)
        trust = known.trusted()
        timeout = settings.connect_timeout or CONNECT_TIMEOUT_SECONDS
        async with asyncio.timeout(timeout + LOGIN_TIMEOUT_SECONDS):
            # Not through `options=`: what connect() itself is not given would come from ssh_config, whatever they say.
            return await asyncssh.connect(
                hop.alias,
                hop.port or (),
                tunnel=tunnel,
                config=ssh_config_files(),
                username=hop.user or (),
                known_hosts=lambda *_: (*trust, [], [], [], []),
                server_host_key_algs=host_key_algorithms(trust),
                client_factory=lambda: verifier,
                password_auth=False,
                kbdint_auth=False,
                connect_timeout=timeout,
                login_timeout=LOGIN_TIMEOUT_SECONDS,
                keepalive_interval=KEEPALIVE_INTERVAL_SECONDS,
                keepalive_count_max=KEEPALIVE_COUNT,
            )
    except asyncssh.HostKeyNotVerifiable as error:
        raise _key_error(host, known, path, settings.port, verifier.offered, str(error)) from None
    except (asyncssh.PermissionDenied, asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        user = hop.user or settings.username
        raise LoginRefused(
            host,
            f"{user}@{hop.alias} was not let in: {error}",
            f"make this work first: ssh {user}@{hop.alias} true (add the key to ssh-agent, or to the host's "
            "~/.ssh/authorized_keys)",
        ) from None
    except (OSError, asyncssh.Error, ValueError) as error:
        raise _unreachable(host, hop, error) from None


def _key_error(
    host: str, known: KnownHosts, path: str, port: int, key: asyncssh.SSHKey | None, reason: str
) -> TransportError:
    keys, _, revoked = known.exact()
    where = f"{known.name}:{port}"
    if key is None:
        return HostKeyMismatch(host, f"the host key of {where} cannot be trusted: {reason}", _MISMATCH_REMEDY)
    fingerprint = key.get_fingerprint()
    if key in revoked:
        return HostKeyMismatch(host, f"the host key of {where} is revoked ({fingerprint})", _MISMATCH_REMEDY)
    if keys:
        expected = ", ".join(item.get_fingerprint() for item in keys)
        message = f"the host key of {where} has changed: it offers {fingerprint}, known_hosts has {expected}"
        remedy = f"{_MISMATCH_REMEDY}; if it was reinstalled: ssh-keygen -f {path} -R '{_label(known)}'"
        return HostKeyMismatch(host, message, remedy)
    return HostKeyUnknown(
        HostKeyQuestion(
            host=host,
            address=known.name,
            port=port,
            key_type=key.get_algorithm(),
            fingerprint=fingerprint,
            known_hosts_line=known_hosts_line(known.name, known.port, key),
            known_hosts_path=path,
        )
    )


_MISMATCH_REMEDY = "ask whoever runs the host; somebody may be in between"


def _label(known: KnownHosts) -> str:
    return known.name if known.port == SSH_PORT else f"[{known.name}]:{known.port}"


def _unreachable(host: str, hop: Hop, error: Exception) -> HostUnreachable:
    if isinstance(error, TimeoutError):
        reason = "no answer in time"
    elif isinstance(error, socket.gaierror):
        reason = "its name is not known"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = str(error) or type(error).__name__
    return HostUnreachable(
        host, f"cannot connect to {hop.alias}: {reason}", f"is it up and its sshd running? try: ssh {hop.alias} true"
    )
