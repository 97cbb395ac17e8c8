"""Transport `ssh`: one asyncssh connection a host, over which the agent's unix socket is reached.

~/.ssh/config counts (FLEET_SSH_CONFIG names another file): HostName, Port, User, IdentityFile, IdentityAgent,
ProxyJump, ProxyCommand, UserKnownHostsFile, HostKeyAlias. Host keys are always verified, whatever that file says:
`StrictHostKeyChecking no` and `UserKnownHostsFile none` change nothing here.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
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
from fleet_controller.transport.link import SCRIPT_TIMEOUT_SECONDS, ScriptResult, unpack_command
from fleet_inventory.hosts import Host

CONNECT_TIMEOUT_SECONDS = 10.0
LOGIN_TIMEOUT_SECONDS = 20.0
# A cut link is noticed after KEEPALIVE_INTERVAL_SECONDS * KEEPALIVE_COUNT.
KEEPALIVE_INTERVAL_SECONDS = 5.0
KEEPALIVE_COUNT = 3
PUSH_CHUNK_BYTES = 256 * 1024
PUSH_TIMEOUT_SECONDS = 900.0


def ssh_config_files() -> list[str]:
    """The ssh_config to read: FLEET_SSH_CONFIG, else ~/.ssh/config, where it is there."""
    path = Path(os.environ.get("FLEET_SSH_CONFIG") or Path.home() / ".ssh" / "config").expanduser()
    return [str(path)] if path.is_file() else []


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


async def connect(host: Host) -> SshLink:
    """Logs in to a host, through its jump hosts.

    Raises HostUnreachable, HostKeyUnknown, HostKeyMismatch, LoginRefused.
    """
    connections: list[asyncssh.SSHClientConnection] = []
    try:
        for hop in await _hops(host):
            connections.append(await _connect_hop(host.name, hop, connections[-1] if connections else None))
    except BaseException:
        for connection in reversed(connections):
            connection.abort()
        raise
    return SshLink(host.name, connections)


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


class SshLink:
    """A HostLink over one SSH connection (and those to its jump hosts)."""

    def __init__(self, host: str, connections: list[asyncssh.SSHClientConnection]) -> None:
        self.host = host
        self._connections = connections
        self._connection = connections[-1]
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._forwards: dict[str, str] = {}
        self._closed = False
        self._watcher = asyncio.ensure_future(self._watch())

    @property
    def closed(self) -> bool:
        return self._closed

    async def _watch(self) -> None:
        with suppress(Exception):
            await self._connection.wait_closed()
        self._closed = True
        self._remove_folder()

    async def run_script(
        self,
        script: str,
        timeout_seconds: float = SCRIPT_TIMEOUT_SECONDS,
        on_line: Callable[[str], None] | None = None,
    ) -> ScriptResult:
        try:
            async with asyncio.timeout(timeout_seconds):
                async with self._connection.create_process("exec /bin/sh -s", errors="replace") as process:
                    return await _converse(process, script, on_line)
        except TimeoutError:
            message = f"a script did not end within {timeout_seconds:.0f} s"
            raise HostUnreachable(self.host, message, "", "script-timeout") from None
        except (OSError, asyncssh.Error) as error:
            raise self._lost(error) from None

    async def unpack(self, archive: bytes, folder: str, on_progress: Callable[[int], None] | None = None) -> None:
        try:
            async with asyncio.timeout(PUSH_TIMEOUT_SECONDS):
                async with self._connection.create_process(unpack_command(folder), encoding=None) as process:
                    for start in range(0, len(archive), PUSH_CHUNK_BYTES):
                        chunk = archive[start : start + PUSH_CHUNK_BYTES]
                        process.stdin.write(chunk)
                        await process.stdin.drain()
                        if on_progress:
                            on_progress(start + len(chunk))
                    process.stdin.write_eof()
                    errors = await process.stderr.read()
                    completed = await process.wait(check=False)
        except (OSError, asyncssh.Error, TimeoutError) as error:
            raise self._lost(error) from None
        if completed.exit_status != 0:
            reason = errors.decode(errors="replace").strip()
            raise HostUnreachable(self.host, f"cannot unpack into {folder}: {reason}", "", "push-failed")

    async def forward(self, socket_path: str) -> str:
        if socket_path not in self._forwards:
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="fleet-", dir=_socket_folder())
            local = f"{self._folder.name}/{len(self._forwards)}.sock"
            try:
                await self._connection.forward_local_path(local, socket_path)
            except (OSError, asyncssh.Error) as error:
                raise self._lost(error) from None
            self._forwards[socket_path] = local
        return self._forwards[socket_path]

    async def close(self) -> None:
        for connection in reversed(self._connections):
            connection.close()
        with suppress(Exception):
            async with asyncio.timeout(2):
                await self._connection.wait_closed()
        for connection in self._connections:
            connection.abort()
        self._watcher.cancel()
        self._closed = True
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder:
            self._folder.cleanup()
            self._folder = None

    def _lost(self, error: Exception) -> HostUnreachable:
        return HostUnreachable(
            self.host, f"the connection was lost: {error or type(error).__name__}", "run the command again; it resumes"
        )


async def _converse(
    process: asyncssh.SSHClientProcess[str], script: str, on_line: Callable[[str], None] | None
) -> ScriptResult:
    process.stdin.write(script)
    process.stdin.write_eof()

    async def read_lines() -> str:
        lines: list[str] = []
        async for line in process.stdout:
            lines.append(line)
            if on_line:
                on_line(line.rstrip("\n"))
        return "".join(lines)

    output, errors = await asyncio.gather(read_lines(), process.stderr.read())
    completed = await process.wait(check=False)
    status = completed.exit_status
    return ScriptResult(-1 if status is None else status, output, errors)


def _socket_folder() -> str | None:
    """XDG_RUNTIME_DIR keeps socket paths short and private; else the system's temporary folder."""
    folder = os.environ.get("XDG_RUNTIME_DIR", "")
    if folder and len(folder) < 60 and os.access(folder, os.W_OK):
        return folder
    return "/tmp" if os.access("/tmp", os.W_OK) else None
