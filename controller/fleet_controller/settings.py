"""Where the controller keeps its things. Every path can be moved by one FLEET_* variable."""

import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fleet_inventory.paths import hosts_file

# sockaddr_un holds 108 bytes on Linux and 104 on macOS, the terminating zero included.
LONGEST_SOCKET_PATH_BYTES = 100


# How often a resident controller looks for rollouts that nobody carries out, and for hosts that came back.
CATCH_UP_SECONDS = 30.0
# How long a deploy waits for a host that it lost in the middle, before the host counts as away.
HOST_PATIENCE_SECONDS = 60.0


class UnsafeFolderError(Exception):
    """A folder that must be ours alone is not."""


@dataclass(frozen=True)
class Settings:
    """Folders of one user's controller on this machine."""

    hosts_file: Path
    state_dir: Path
    runtime_dir: Path
    catch_up_seconds: float = CATCH_UP_SECONDS
    host_patience_seconds: float = HOST_PATIENCE_SECONDS

    @classmethod
    def from_environment(cls) -> "Settings":
        """FLEET_HOSTS or FLEET_CONFIG_DIR, FLEET_STATE_DIR and FLEET_RUNTIME_DIR, or their usual places.

        FLEET_CATCH_UP_SECONDS, FLEET_HOST_PATIENCE_SECONDS: what is no positive number counts for nothing.
        """
        state = os.environ.get("FLEET_STATE_DIR") or Path.home() / ".local" / "state" / "fleet"
        runtime = os.environ.get("FLEET_RUNTIME_DIR") or Path("/tmp") / f"fleet-{os.getuid()}"
        return cls(
            hosts_file(),
            Path(state).expanduser(),
            Path(runtime).expanduser(),
            _seconds("FLEET_CATCH_UP_SECONDS", CATCH_UP_SECONDS),
            _seconds("FLEET_HOST_PATIENCE_SECONDS", HOST_PATIENCE_SECONDS),
        )

    @property
    def database_file(self) -> Path:
        return self.state_dir / "fleet.db"

    @property
    def log_file(self) -> Path:
        return self.state_dir / "controller.log"

    @property
    def lock_file(self) -> Path:
        return self.state_dir / "controller.lock"

    @property
    def identity_file(self) -> Path:
        return self.state_dir / "controller.json"

    @property
    def socket_path(self) -> Path:
        """The resident controller's socket; beside the state, or in the runtime folder where that path is too long."""
        beside_state = self.state_dir / "controller.sock"
        if len(os.fsencode(beside_state)) <= LONGEST_SOCKET_PATH_BYTES:
            return beside_state
        key = hashlib.sha256(os.fsencode(self.state_dir)).hexdigest()[:12]
        return self.runtime_dir / f"controller-{key}.sock"

    def private_socket_folder(self) -> Path:
        """A fresh folder of mode 0700 for the socket of an embedded controller."""
        return Path(tempfile.mkdtemp(prefix="cli-", dir=private_folder(self.runtime_dir)))


def _seconds(variable: str, usual: float) -> float:
    try:
        seconds = float(os.environ.get(variable, usual))
    except ValueError:
        return usual
    return seconds if 0 < seconds < float("inf") else usual


def private_folder(path: Path) -> Path:
    """`path` as an existing folder of mode 0700 that is ours. Raises UnsafeFolderError where it is someone else's."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UnsafeFolderError(f"{path} is not a folder of yours; remove it or set FLEET_RUNTIME_DIR to another one")
    if found.st_mode & stat.S_ISVTX:  # /tmp itself, named by a root user: closing it would stop the machine
        raise UnsafeFolderError(f"{path} is a folder for everybody; name a folder below it")
    if stat.S_IMODE(found.st_mode) & 0o077:
        path.chmod(0o700)
    return path
