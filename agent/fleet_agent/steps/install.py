"""What installs share: one at a time for a key, built beside and renamed into place, install.json last."""

import contextlib
import datetime
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet_agent.configuration import INSTALL_KEY
from fleet_agent.engines.sizes import disk_use
from fleet_agent.file_lock import file_lock
from fleet_agent.jobs.errors import SpecProblem
from fleet_agent.jobs.store import fsync_folder, write_json
from fleet_agent.steps.context import StepContext

RESERVED_KEYS = frozenset({"sources"})


def check_key(key: str, what: str) -> None:
    """Raises SpecProblem where the key could be anything but a plain folder name."""
    if not INSTALL_KEY.match(key) or key in RESERVED_KEYS or key.endswith((".tmp", ".build", ".lock")):
        raise SpecProblem(f"{what} {key!r} is no plain folder name")


@dataclass(frozen=True)
class Install:
    """One install to be: `final` appears in one rename, whole, and never before `install.json` is in it."""

    key: str
    backend: str
    version: str
    final: Path
    staging: Path
    build: Path

    @classmethod
    def at(cls, key: str, backend: str, version: str, engines_dir: Path) -> "Install":
        return cls(
            key, backend, version, engines_dir / key, engines_dir / f"{key}.tmp", engines_dir / f"{key}.build"
        )  # fmt: skip

    @property
    def present(self) -> bool:
        return (self.final / "install.json").is_file()

    def record(self) -> dict[str, Any]:
        """install.json of the finished install."""
        document: dict[str, Any] = json.loads((self.final / "install.json").read_text(encoding="utf-8"))
        return document

    def result(self, changed: bool) -> dict[str, Any]:
        return {"changed": changed, "path": str(self.final), "install": self.record()}

    def clean(self) -> None:
        """Drop what a failed or killed attempt left."""
        for folder in (self.staging, self.build):
            shutil.rmtree(folder, ignore_errors=True)

    def finish(self, options: dict[str, Any], binaries: list[str], **more: Any) -> None:
        """Write install.json into the staging folder and rename it into place."""
        use = disk_use(self.staging)
        document = {
            "install_key": self.key,
            "backend": self.backend,
            "version": self.version,
            "options": options,
            "binaries": binaries,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "size_bytes": use.size_bytes,
            "shared_bytes": use.shared_bytes,  # by hard links with uv's cache
            **more,
        }
        write_json(self.staging / "install.json", document)
        if self.final.exists():  # without install.json: not an install, only what is left of one
            shutil.rmtree(self.final)
        self.staging.rename(self.final)
        fsync_folder(self.final.parent)


@contextlib.asynccontextmanager
async def locked(context: StepContext, key: str) -> Any:
    """The lock of an install or source key, taken without blocking the event loop."""
    lock = file_lock(context.layout.engines_dir / ".locks" / f"{key}.lock", context.cancelled)
    await context.in_thread(lock.__enter__)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)
