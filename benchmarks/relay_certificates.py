"""Certificates of a lab's rollout, as the controller issues them."""

import datetime
from pathlib import Path

from fleet_agent.relay.control import TlsFiles
from fleet_controller.pki.authority import Authority, Usage, new_key


class Certificates:
    """A certificate authority for one rollout, and a key and certificate for each name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._authority = Authority.create("relay lab", datetime.datetime.now(datetime.UTC))
        self._ca = folder / "ca.pem"
        self._ca.write_bytes(self._authority.certificate_pem)

    def files(self, name: str) -> TlsFiles:
        public, private = new_key()
        made = self._authority.issue(public, name, Usage.PULL, 1, datetime.datetime.now(datetime.UTC))
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(made.pem)
        key.touch(0o600)
        key.write_bytes(private)
        return TlsFiles(str(self._ca), str(certificate), str(key))
