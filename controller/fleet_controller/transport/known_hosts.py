"""known_hosts: what is trusted for a host, and writing down what a person said yes to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import asyncssh
from asyncssh.known_hosts import SSHKnownHosts

from fleet_controller.domain.events import HostKeyQuestion

GLOBAL_FILES = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
USER_FILES = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
SSH_PORT = 22

# Trusted host keys, trusted authorities, revoked keys; then X.509, which OpenSSH does not use.
Trust = tuple[Sequence[asyncssh.SSHKey], Sequence[asyncssh.SSHKey], Sequence[asyncssh.SSHKey]]


class KnownHosts:
    """The entries of several known_hosts files for one host. Missing files are empty; a broken line is skipped."""

    def __init__(self, files: Sequence[str], name: str, port: int) -> None:
        """`name` is what ssh would look up: the HostKeyAlias (with port 22), else the host name as configured."""
        self._entries = SSHKnownHosts()
        for file in files:
            path = Path(file).expanduser()
            if path.is_file() and os.access(path, os.R_OK):
                self._entries.load(path.read_text(encoding="utf-8", errors="replace"))
        self.name = name
        self.port = port

    def exact(self) -> Trust:
        """Entries for this very name and port. They alone decide whether an offered key is a changed key."""
        return self._match(self.port)

    def trusted(self) -> Trust:
        """As OpenSSH does, an entry for the bare name serves another port, too, where that port has none."""
        keys, authorities, revoked = self.exact()
        if self.port == SSH_PORT or keys or authorities:
            return keys, authorities, revoked
        bare = self._match(SSH_PORT)
        return bare[0], bare[1], (*revoked, *bare[2])

    def _match(self, port: int) -> Trust:
        # Looked up by name alone, like OpenSSH's CheckHostIP=no: an address is not an identity.
        found = self._entries._match(self.name, "", port if port != SSH_PORT else None)
        return found[0], found[1], found[2]


def host_key_algorithms(trust: Trust) -> list[str]:
    """Algorithms in the order to ask for: those that could match what is known come first.

    A server has keys of several kinds; asking for the known kind first tells a changed key from another one.
    """
    keys, authorities, _ = trust
    certificates = [name.decode() for name in asyncssh.public_key.get_default_certificate_algs()]
    plain = [name.decode() for name in asyncssh.public_key.get_default_public_key_algs()]
    known = [name.decode() for key in keys for name in key.sig_algorithms]
    order = (certificates if authorities else []) + known + plain
    return list(dict.fromkeys(name for name in order if name in plain or name in certificates))


def known_hosts_line(name: str, port: int, key: asyncssh.SSHKey) -> str:
    """The line that ssh itself would write for this key, unhashed so that a person can read it."""
    label = name if port == SSH_PORT else f"[{name}]:{port}"
    algorithm, data = key.export_public_key("openssh").decode().split()[:2]
    return f"{label} {algorithm} {data}"


def trust_host_key(question: HostKeyQuestion) -> bool:
    """Appends the key of a question that a person answered with yes; False where the line is already there.

    Raises ValueError where line and fingerprint do not belong together, OSError where the file cannot be written.
    """
    label, _, key_text = question.known_hosts_line.partition(" ")
    key = asyncssh.import_public_key(key_text)
    if key.get_fingerprint() != question.fingerprint or "\n" in question.known_hosts_line or not label:
        raise ValueError(f"the known_hosts line for {question.host} does not belong to {question.fingerprint}")
    path = Path(question.known_hosts_path).expanduser()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    present = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    if question.known_hosts_line in present.splitlines():
        return False
    start = "\n" if present and not present.endswith("\n") else ""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{start}{question.known_hosts_line}\n")
    return True
