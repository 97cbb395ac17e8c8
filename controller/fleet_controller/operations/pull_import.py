"""A folder with a model's files as something that can be pulled: its hashes, and a commit that names them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleet_controller.domain.pulls import PulledFiles, PullRequest, PullSource
from fleet_controller.domain.steps import ArtifactFile, HashFolderStep, JobSpec, Step
from fleet_controller.operations.context import FleetContext
from fleet_controller.operations.jobs import run_job
from fleet_controller.operations.problems import OperationError
from fleet_controller.operations.pull_wanted import Wanted
from fleet_controller.operations.threads import in_daemon_thread
from fleet_controller.pulling.folder import hashed_folder
from fleet_inventory.hosts import Host

# What the hub keeps in Git LFS, and so names by sha256; everything else is named by its git blob id.
LFS_ENDINGS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".onnx", ".model", ".npz", ".h5", ".msgpack")
LFS_FROM_BYTES = 10 << 20
REVISION = "main"


async def imported_files(
    context: FleetContext, request: PullRequest, hosts: Sequence[Host]
) -> tuple[Wanted, PullSource]:
    """The folder is read and hashed once, where it lies. Raises OperationError."""
    if not request.repository:
        message = "a folder does not say which repository its files are of"
        raise OperationError(
            "usage", message, "add --repo owner/name, under which the hosts' programs find it", usage=True
        )
    if request.folder_host:
        host = context.inventory().hosts.get(request.folder_host)
        if host is None:
            message = f"there is no host {request.folder_host}"
            raise OperationError("no-such-host", message, "fleet hosts lists them", usage=True)
        found = await _hashed_on(context, host, request.folder)
        source = PullSource(host=host.name, folder=request.folder, words=f"{request.folder} on {host.name}")
    else:
        try:
            found = await in_daemon_thread(hashed_folder, Path(request.folder))
        except (OSError, ValueError) as error:
            raise OperationError(
                "bad-folder", f"{request.folder}: {error}", "name a model's folder", usage=True
            ) from None
        source = PullSource(served_folder=request.folder, words=f"{request.folder} on this machine")
    files, notes = files_of_folder(request.repository, found)
    return Wanted(by_host={host.name: files for host in hosts}, problems={}, notes=notes), source


async def _hashed_on(context: FleetContext, host: Host, folder: str) -> dict[str, Any]:
    job_id = f"hash-{hashlib.sha256(folder.encode()).hexdigest()[:16]}"
    step = Step(name=f"hash {folder}", hash_folder=HashFolderStep(path=folder))
    results: list[dict[str, Any]] = []
    async for _ in run_job(context, host, JobSpec(job_id=job_id, title=f"hash {folder}", steps=(step,)), results):
        pass
    return results[-1]


def files_of_folder(repository: str, found: dict[str, Any]) -> tuple[PulledFiles, tuple[str, ...]]:
    """The files with the hashes that the hub noted when they came from there, else with those that it would give.

    Without noted ones the commit is made of the content: the same files are the same commit, on any machine.
    Raises OperationError for a file that is not what was noted.
    """
    files, damaged = [], []
    for entry in found["files"]:
        noted = entry.get("noted", "")
        if noted and noted not in (entry["sha256"], entry["git_blob_id"]):
            damaged.append(entry["path"])
            continue
        by_sha256 = noted == entry["sha256"] if noted else _in_lfs(entry["path"], entry["size_bytes"])
        name = {"sha256": entry["sha256"]} if by_sha256 else {"git_blob_id": entry["git_blob_id"]}
        files.append(ArtifactFile(path=entry["path"], size_bytes=entry["size_bytes"], **name))
    if damaged:
        message = f"{', '.join(damaged[:5])} in the folder is not what the hub had when it was downloaded"
        raise OperationError("hash-mismatch", message, "download it again")
    if not files:
        raise OperationError("no-model", "the folder holds no file", "name the folder with one model's files")
    listing = json.dumps(sorted((file.path, file.sha256 or file.git_blob_id) for file in files))
    commit = found.get("commit") or hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()
    notes = (
        () if found.get("commit") else ("the folder does not say which commit it is of: it is named by its content",)
    )
    return PulledFiles(repository=repository, commit=commit, revision=REVISION, files=tuple(files)), notes


def _in_lfs(path: str, size_bytes: int) -> bool:
    return path.endswith(LFS_ENDINGS) or size_bytes >= LFS_FROM_BYTES
