"""What the controller keeps of its authority: <state_dir>/identity, of mode 0700, with keys of mode 0600.

authority.pem      key and certificate, made on the first `fleet up`; the key never leaves this machine
controller.json    the controller's own key and certificate, made again after half their life, or by another authority
hosts/HOST.json    which certificate a host has, where it listens, whether it was revoked
"""

from __future__ import annotations

import datetime
import getpass
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fleet_controller.domain.base import Frozen
from fleet_controller.pki.names import CONTROLLER, host_name, new_label
from fleet_controller.private_file import write_private, write_private_once
from fleet_controller.settings import private_folder

if TYPE_CHECKING:
    from fleet_controller.pki.authority import Authority  # loads the crypto library

HOST_DAYS = 90.0
CONTROLLER_DAYS = 365.0
PULL_DAYS = 1.0


class UnusableAuthorityError(Exception):
    """The authority's files cannot be used; the text says what to do."""


class Enrolment(Frozen):
    """A host's identity as the controller knows it. `way` is what hosts.yaml said then; times are Unix seconds."""

    host: str
    way: str
    address: str
    port: int
    machine_id: str
    label: str
    not_before: float = 0.0
    not_after: float = 0.0
    revoked: bool = False

    @property
    def name(self) -> str:
        return host_name(self.label, self.machine_id)

    def half_spent(self, now: float) -> bool:
        return now > (self.not_before + self.not_after) / 2

    def expired(self, now: float) -> bool:
        return now > self.not_after


class Credentials(Frozen):
    """What a TLS channel takes, as PEM."""

    authority_pem: bytes
    key_pem: bytes
    certificate_pem: bytes


class _Kept(Frozen):
    key_pem: str
    certificate_pem: str


class IdentityKeeper:
    """The authority and what it signed. `now` gives Unix seconds."""

    def __init__(self, state_dir: Path, now: Callable[[], float] = time.time) -> None:
        self._folder = state_dir / "identity"
        self._now = now

    def ensure(self) -> bytes:
        """The authority's certificate as PEM; it is made where there is none yet. Raises UnusableAuthorityError."""
        return self._authority().certificate_pem

    def credentials(self) -> Credentials:
        """The controller's own, made new after half their life, and where the authority is another one than it was.

        Raises UnusableAuthorityError.
        """
        from fleet_controller.pki.authority import Usage, certificate_of, new_key

        authority_pem = self.ensure()
        with suppress(OSError, ValueError):
            kept = _Kept.model_validate_json(self._controller_file.read_bytes())
            certificate = certificate_of(kept.certificate_pem.encode())
            if certificate.is_signed_by(authority_pem) and not certificate.half_spent(self._now()):
                return _credentials(authority_pem, kept)
        public_key, key_pem = new_key()
        made = self._authority().issue(public_key, CONTROLLER, Usage.CONTROLLER, CONTROLLER_DAYS, self._moment())
        kept = _Kept(key_pem=key_pem.decode(), certificate_pem=made.pem.decode())
        write_private(self._controller_file, kept.model_dump_json().encode())
        return _credentials(authority_pem, kept)

    def sign_host(self, openssh_line: str, enrolment: Enrolment) -> tuple[bytes, Enrolment]:
        """A certificate for a host's key, and the enrolment with its times; not kept yet. Raises ValueError."""
        from fleet_controller.pki.authority import Usage, public_key_of

        key = public_key_of(openssh_line)
        made = self._authority().issue(key, enrolment.name, Usage.HOST, HOST_DAYS, self._moment())
        times = {"not_before": made.not_before, "not_after": made.not_after, "revoked": False}
        return made.pem, enrolment.model_copy(update=times)

    def sign_pull(self, name: str) -> Credentials:
        """Key and certificate of one node of one pull (names.pull_name), made here and kept nowhere."""
        from fleet_controller.pki.authority import Usage, new_key

        authority = self._authority()
        public_key, key_pem = new_key()
        made = authority.issue(public_key, name, Usage.PULL, PULL_DAYS, self._moment())
        return Credentials(authority_pem=authority.certificate_pem, key_pem=key_pem, certificate_pem=made.pem)

    def enrolment(self, host: str) -> Enrolment | None:
        """None for a host that was never enrolled, or whose file is broken: `fleet up` makes a new one."""
        with suppress(OSError, ValueError):
            return Enrolment.model_validate_json(self._host_file(host).read_bytes())
        return None

    def keep(self, enrolment: Enrolment) -> None:
        private_folder(self._folder)
        private_folder(self._folder / "hosts")
        write_private(self._host_file(enrolment.host), enrolment.model_dump_json().encode())

    def forget(self, host: str) -> None:
        """The host is reached in another way now. A certificate that was revoked stays so, and one that was not names
        nobody any more either: the next enrolment has another label.
        """
        found = self.enrolment(host)
        if found is not None and not found.revoked:
            self._host_file(host).unlink(missing_ok=True)

    def revoke(self, host: str) -> bool:
        """From now on the host's certificate is nobody's; False where it had none."""
        found = self.enrolment(host)
        if found is None or found.revoked:
            return False
        self.keep(found.model_copy(update={"revoked": True, "label": new_label()}))
        return True

    def _authority(self) -> Authority:
        from fleet_controller.pki.authority import Authority

        path = private_folder(self._folder) / "authority.pem"
        try:
            both = path.read_bytes()
        except FileNotFoundError:
            made = Authority.create(f"fleet of {getpass.getuser()} at {socket.gethostname()}", self._moment())
            both = write_private_once(path, made.key_pem + made.certificate_pem)
        key, begin, certificate = both.partition(b"-----BEGIN CERTIFICATE-----")
        if not begin or not key:
            message = f"{path} holds no authority; restore it from a backup"
            raise UnusableAuthorityError(f"{message}, or remove {self._folder} and run `fleet up --force`")
        return Authority(key, begin + certificate)

    def _moment(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self._now(), datetime.UTC)

    @property
    def _controller_file(self) -> Path:
        return self._folder / "controller.json"

    def _host_file(self, host: str) -> Path:
        return self._folder / "hosts" / f"{host}.json"


def _credentials(authority_pem: bytes, kept: _Kept) -> Credentials:
    return Credentials(
        authority_pem=authority_pem, key_pem=kept.key_pem.encode(), certificate_pem=kept.certificate_pem.encode()
    )
