"""Who measures on which device now: one JSON file a lease, and every reader judges for itself whether it still holds.

A lease ends with the process that holds it, not with time: whoever reads it looks whether that very process lives. So
nothing has to be cleaned up after a kill, a crash or a reboot for the device to be free again, and for the services
that were paused to be wanted again.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fleet_agent.jobs.store import wake, write_json
from fleet_agent.layout import Layout
from fleet_agent.problem import ProblemError
from fleet_agent.process import ProcessIdentity, is_alive


@dataclass(frozen=True)
class Lease:
    """`gpu_indices` empty = the whole host. `service` may run on the device: it is what is measured."""

    owner: str
    title: str
    holder: ProcessIdentity
    since_unix_ms: int
    gpu_indices: tuple[int, ...] = ()
    paused_services: tuple[str, ...] = ()
    service: str = ""

    def covers(self, gpu_indices: tuple[int, ...]) -> bool:
        """Whether work on these devices would disturb: whoever names none may use all of them."""
        return overlap(self.gpu_indices, gpu_indices)

    def describe(self) -> str:
        """In a user's words: "bench tiny Q8_0 since 14:02"."""
        started = datetime.fromtimestamp(self.since_unix_ms / 1000)
        same_day = started.date() == datetime.now().date()
        return f"{self.title} since {started:%H:%M}" if same_day else f"{self.title} since {started:%Y-%m-%d %H:%M}"


def overlap(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Whether two sets of devices have one in common; an empty one is the whole host."""
    return not first or not second or bool(set(first) & set(second))


class LeaseStore:
    """The leases of this machine, for the agent and for every runner."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wake_path = folder / "wake"

    @classmethod
    def of(cls, layout: Layout) -> "LeaseStore":
        return cls(layout.machine_dir / "leases")

    def live(self) -> tuple[Lease, ...]:
        """The leases whose holders live, oldest first. A file that cannot be read holds nothing."""
        found = (_read(path) for path in self.folder.glob("*.json"))
        leases = [lease for lease in found if lease is not None and is_alive(lease.holder)]
        return tuple(sorted(leases, key=lambda lease: (lease.since_unix_ms, lease.owner)))

    def acquire(self, lease: Lease) -> Lease | None:
        """Write the lease down, on disk when this returns; or the lease that is in its way. Raises OSError."""
        with self._locked():
            others = (other for other in self.live() if other.owner != lease.owner and other.covers(lease.gpu_indices))
            blocking = next(others, None)
            if blocking is None:
                write_json(self._path(lease.owner), _document(lease))
        if blocking is None:
            wake(self.wake_path)
        return blocking

    def release(self, owner: str) -> None:
        """End a lease; one that is not there is fine. The agent is told, so that it starts what was paused."""
        with contextlib.suppress(OSError):
            self._path(owner).unlink(missing_ok=True)
        wake(self.wake_path)

    def ring(self) -> None:
        """Tell the agent to look at the leases again."""
        wake(self.wake_path)

    def sweep(self) -> None:
        """Remove the files of leases that hold no more."""
        with contextlib.suppress(OSError), self._locked():
            for path in self.folder.glob("*.json"):
                lease = _read(path)
                if lease is None or not is_alive(lease.holder):
                    path.unlink(missing_ok=True)

    def refuse(self, name: str, gpu_indices: tuple[int, ...]) -> None:
        """Raises ProblemError "leased" where somebody measures on these devices and the service `name` is not it."""
        for lease in self.live():
            if lease.covers(gpu_indices) and lease.service != name:
                raise ProblemError(
                    "leased", f"busy: {lease.describe()}", "wait until it has ended: the same command with --wait does"
                )

    def paused(self) -> dict[str, Lease]:
        """The services that must not run now, each with the lease that says so."""
        return {name: lease for lease in self.live() for name in lease.paused_services}

    def _path(self, owner: str) -> Path:
        return self.folder / f"{owner}.json"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time; the lock goes with the process, however it ends."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _document(lease: Lease) -> dict[str, object]:
    return {
        "owner": lease.owner,
        "title": lease.title,
        "holder": {"pid": lease.holder.pid, "start_token": lease.holder.start_token},
        "since_unix_ms": lease.since_unix_ms,
        "gpu_indices": list(lease.gpu_indices),
        "paused_services": list(lease.paused_services),
        "service": lease.service,
    }


def _read(path: Path) -> Lease | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        holder = document["holder"]
        return Lease(
            owner=str(document["owner"]),
            title=str(document["title"]),
            holder=ProcessIdentity(int(holder["pid"]), str(holder["start_token"])),
            since_unix_ms=int(document["since_unix_ms"]),
            gpu_indices=tuple(int(index) for index in document["gpu_indices"]),
            paused_services=tuple(str(name) for name in document["paused_services"]),
            service=str(document["service"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
