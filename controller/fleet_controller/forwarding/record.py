"""What is written down of a forward: one JSON file each, `forwards/<model>@<host>.json` in the state folder.

The command that starts a forward writes the file once; from then on its supervisor alone does. A file that somebody
takes away or replaces ends the supervisor.
"""

import json
import os
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import quote

from fleet_controller.forwarding.processes import ProcessIdentity, is_alive, machine_id
from fleet_controller.settings import Settings, private_folder


class ForwardState(StrEnum):
    """ENDED is never written: it is what a reader sees where no supervisor lives."""

    CONNECTING = "connecting"
    UP = "up"
    WAITING = "waiting"  # until the next try
    ENDED = "ended"


@dataclass(frozen=True)
class Forward:
    """127.0.0.1:`local_port` on this machine leads to `remote_address`:`remote_port` as the host sees it."""

    model: str
    host: str
    local_port: int
    remote_address: str
    remote_port: int
    argv: tuple[str, ...]
    machine: str
    machine_name: str
    created_unix_ms: int
    state: ForwardState = ForwardState.CONNECTING
    since_unix_ms: int = 0
    reconnects: int = 0
    cause: str = ""  # code of the last failure, while it is not up
    message: str = ""
    next_try_unix_ms: int | None = None
    supervisor: ProcessIdentity | None = None
    ssh: ProcessIdentity | None = None

    @property
    def name(self) -> str:
        return f"{self.model}@{self.host}"

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.local_port}/v1"

    @property
    def is_elsewhere(self) -> bool:
        """It belongs to another machine that uses the same state folder."""
        return self.machine != machine_id()

    @property
    def is_kept_up(self) -> bool:
        """Whether its supervisor lives, on this machine."""
        return not self.is_elsewhere and is_alive(self.supervisor)

    @property
    def present_state(self) -> ForwardState:
        return self.state if self.is_kept_up else ForwardState.ENDED

    @property
    def carries(self) -> bool:
        """Whether a client of this machine can use it now."""
        return self.is_kept_up and self.state is ForwardState.UP


def forwards_folder(settings: Settings) -> Path:
    return private_folder(private_folder(settings.state_dir) / "forwards")


def record_path(folder: Path, model: str, host: str) -> Path:
    """Names come from hosts: whatever one says stays inside the folder."""
    return folder / f"{quote(model, safe='')}@{quote(host, safe='')}.json"


def log_path(record: Path) -> Path:
    """What the ssh of a forward printed."""
    return record.with_suffix(".log")


def write_forward(path: Path, forward: Forward) -> int:
    """Replaces the file at once; returns its inode, by which the writer knows it again."""
    beside = path.with_suffix(f".{os.getpid()}.new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(forward), file, indent=1)
        inode = os.fstat(file.fileno()).st_ino
    beside.replace(path)
    return inode


def read_forward(path: Path) -> Forward | None:
    """The forward in a file; None where it is gone or damaged."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        for name in ("supervisor", "ssh"):
            found = fields.get(name)
            fields[name] = ProcessIdentity(int(found["pid"]), str(found["start_token"])) if found else None
        fields["argv"] = tuple(fields["argv"])
        fields["state"] = ForwardState(fields["state"])
        return Forward(**fields)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def list_forwards(settings: Settings) -> list[Forward]:
    """Every forward that is written down, by model and host; looks at files and processes, asks no host."""
    folder = settings.state_dir / "forwards"
    found = [read_forward(path) for path in sorted(folder.glob("*.json"))] if folder.is_dir() else []
    return sorted((one for one in found if one is not None), key=lambda one: (one.model, one.host))
