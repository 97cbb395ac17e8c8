"""Looking at the installs of this host, and taking them away.

What goes is renamed first, under its lock and in one step, and only then deleted: a crash leaves something that is no
install, and that the next look counts among the leftovers. Nothing outside the engines folder is ever touched.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fleet_agent.engines.leftovers import Leftover, LeftoverKind, find_leftovers, lock_path, measured
from fleet_agent.engines.sizes import DiskUse, disk_use, install_files
from fleet_agent.engines.uses import Uses
from fleet_agent.file_lock import try_file_lock
from fleet_agent.layout import Layout
from fleet_agent.problem import ProblemError
from fleet_agent.steps.install import check_key


@dataclass(frozen=True)
class InstallUse:
    """One install of ours: its size on the disk and who needs it."""

    install_key: str
    disk: DiskUse
    services: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    adopted_path: str = ""


@dataclass(frozen=True)
class Collected:
    freed_bytes: int
    removed: tuple[str, ...]


class EngineStore:
    """`uses` tells who needs what at this moment; it is asked on the event loop, right before something is renamed."""

    def __init__(self, layout: Layout, uses: Callable[[], Uses]) -> None:
        self._layout = layout
        self._uses = uses

    def uses(self) -> Uses:
        return self._uses()

    def survey(self, uses: Uses) -> tuple[tuple[InstallUse, ...], tuple[Leftover, ...]]:
        """Installs and leftovers with their sizes. Reads every folder: call it in a thread."""
        installs = tuple(self._install(file.parent, uses) for file in install_files(self._layout.engines_dir))
        leftovers = tuple(measured(self._layout, one) for one in find_leftovers(self._layout, uses))
        return installs, leftovers

    def _install(self, folder: Path, uses: Uses) -> InstallUse:
        key = folder.name
        adopted = ""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            adopted = str(json.loads((folder / "install.json").read_text(encoding="utf-8")).get("adopted_path") or "")
        return InstallUse(key, disk_use(folder), uses.services.get(key, ()), uses.jobs.get(key, ()), adopted)

    def set_aside(self, install_key: str) -> list[Path]:
        """Make an install no install any more, at once; `delete` the result.

        Raises ProblemError where there is none, or a service, a job or a process is on it.
        """
        check_key(install_key, "install key")
        folder = self._layout.engines_dir / install_key
        if not (folder / "install.json").is_file():
            raise ProblemError("unknown-engine", f"no engine {install_key} is installed here", "fleet backends list")
        uses = self._uses()
        services, jobs = uses.services.get(install_key, ()), uses.jobs.get(install_key, ())
        if services:
            raise ProblemError(
                "engine-in-use",
                f"{install_key} is used by {', '.join(services)}",
                f"fleet stop {services[0]} --remove, or deploy it on another version first",
            )
        if jobs:
            raise ProblemError(
                "engine-in-use", f"{install_key} is used by the job {jobs[0]}", "wait until it has ended, or cancel it"
            )
        lock = lock_path(self._layout, install_key)
        with try_file_lock(lock) as ours:
            if not ours:
                raise ProblemError("engine-in-use", f"somebody installs {install_key} now", "wait until it has ended")
            doomed = [_aside(folder)]
            build = folder.with_name(f"{install_key}.build")
            if build.is_dir():
                doomed.append(_aside(build))
            lock.unlink(missing_ok=True)
        return doomed

    def set_leftovers_aside(self, paths: Sequence[str]) -> tuple[list[Path], tuple[str, ...]]:
        """Those of the leftovers that nobody needs now, out of everybody's way: (what to delete, what went)."""
        present = {one.path: one for one in find_leftovers(self._layout, self._uses())}
        doomed, removed = [], []
        for path in dict.fromkeys(paths):
            leftover = present.get(path)
            if leftover is None or leftover.used_by:
                continue
            with try_file_lock(lock_path(self._layout, leftover.lock)) as ours:
                if not ours:
                    continue
                target = self._layout.engines_dir / leftover.path
                if leftover.kind is not LeftoverKind.LOCK:
                    doomed.append(_aside(target))
                # Nobody waits for a lock that we hold and whose subject is gone.
                lock_path(self._layout, leftover.lock).unlink(missing_ok=True)
                removed.append(path)
        return doomed, tuple(removed)


def delete(doomed: Sequence[Path]) -> int:
    """Delete what was set aside; the bytes that this freed. Raises ProblemError. Takes long: call it in a thread."""
    freed = 0
    for path in doomed:
        own_bytes = disk_use(path).own_bytes
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise ProblemError(
                "not-removed",
                f"{error.filename or path} cannot be removed: {error.strerror or error}",
                "the rest is no install any more; `fleet backends gc` tries it again",
            ) from error
        freed += own_bytes
    return freed


def _aside(path: Path) -> Path:
    """Rename to a name that nobody builds at: the next attempt at the same key must not meet the deletion."""
    doomed = path.with_name(f"{path.name.lstrip('.')[:120]}.removed-{time.time_ns()}.tmp")
    path.rename(doomed)
    return doomed
