"""The host's key and certificate, in one file of mode 0600 that is replaced whole.

Nothing here reads a certificate: the agent's server process does without a crypto library, gRPC brings its own.
Keys are made by `ssh-keygen`, which is wherever an sshd is.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from fleet_agent.layout import Layout
from fleet_agent.private_file import make_private_folder, write_private
from fleet_agent.problem import ProblemError

_KEY_ID = re.compile(r"[0-9a-f]{16}\Z")
_KEY_SECONDS = 20.0
_NEW_KEYS_KEPT = 4  # one that was asked for and never signed is nobody's


@dataclass(frozen=True)
class Identity:
    """All that serving over TLS takes. The three `*_pem` are PEM texts."""

    key_pem: str
    certificate_pem: str
    authority_pem: str
    controller_name: str
    bind_address: str
    port: int

    @property
    def authority_sha256(self) -> str:
        return hashlib.sha256(self.authority_pem.encode()).hexdigest()


@dataclass(frozen=True)
class NewKey:
    """A key that waits for its certificate; `public_key` is one line as OpenSSH writes it."""

    key_id: str
    public_key: str


@dataclass(frozen=True)
class IdentityStore:
    """The folder `identity` of this machine, of mode 0700."""

    folder: Path

    @classmethod
    def of(cls, layout: Layout) -> "IdentityStore":
        return cls(layout.machine_dir / "identity")

    @property
    def _path(self) -> Path:
        return self.folder / "identity.json"

    def load(self) -> Identity | None:
        """None where the host is not enrolled. Raises ProblemError for a file that cannot be used."""
        try:
            return Identity(**json.loads(self._path.read_text(encoding="ascii")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise ProblemError(
                "bad-identity", f"{self._path} cannot be used: {error}", "fleet up HOST enrols the host again"
            ) from None

    def new_key(self) -> NewKey:
        """Blocks some milliseconds. Raises ProblemError where the host has no ssh-keygen."""
        program = shutil.which("ssh-keygen") or next(filter(os.path.exists, ("/usr/bin/ssh-keygen",)), None)
        if program is None:
            raise ProblemError(
                "no-key-tool", "this host has no ssh-keygen to make a key with", "install openssh-client on it"
            )
        make_private_folder(self.folder)
        key_id = os.urandom(8).hex()
        path = self._new(key_id)
        argv = [program, "-q", "-t", "ecdsa", "-b", "256", "-m", "PKCS8", "-N", "", "-C", "fleet", "-f", str(path)]
        made = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_KEY_SECONDS, check=False)
        if made.returncode != 0:
            said = made.stderr.decode(errors="replace").strip() or "it said nothing"
            raise ProblemError("no-key", f"ssh-keygen made no key: {said}", "is the disk full?")
        public = path.with_name(path.name + ".pub")
        line = public.read_text(encoding="ascii").strip()
        public.unlink()
        self._forget_old(path)
        return NewKey(key_id, line)

    def install(self, identity_key_id: str, replace: bool, **parts: str | int) -> Identity:
        """Makes the key `identity_key_id` and the given parts the host's identity, at once or not at all.

        Raises ProblemError for a key that is not here, and for another authority than before without `replace`.
        """
        identity = Identity(key_pem=self._read_new(identity_key_id), **parts)  # type: ignore[arg-type]
        before = None if replace else self.load()
        if before is not None and before.authority_sha256 != identity.authority_sha256:
            raise ProblemError(
                "other-authority",
                "this host is enrolled with another fleet's authority",
                "use transport: ssh, or take it over: fleet up --transport tls --force HOST",
                "FAILED_PRECONDITION",
            )
        write_private(self._path, json.dumps(asdict(identity)).encode("ascii"))
        self._new(identity_key_id).unlink()
        return identity

    def remove(self) -> bool:
        """False where the host was not enrolled."""
        for path in self.folder.glob("new-*"):
            path.unlink()
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True

    def _new(self, key_id: str) -> Path:
        return self.folder / f"new-{key_id}"

    def _read_new(self, key_id: str) -> str:
        if _KEY_ID.match(key_id):
            with contextlib.suppress(FileNotFoundError):
                return self._new(key_id).read_text(encoding="ascii")
        raise ProblemError("no-such-key", "the key was not made here", "ask for a new one", "NOT_FOUND")

    def _forget_old(self, newest: Path) -> None:
        others = sorted((path for path in self.folder.glob("new-*") if path != newest), key=_modified)
        for path in others[: max(len(others) + 1 - _NEW_KEYS_KEPT, 0)]:
            path.unlink(missing_ok=True)


def _modified(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0
