"""A file already on the host: it must exist, and match where size or hash is given.

Result: {"path": ..., "size_bytes": n, "sha256": "..." where it was computed}.
"""

import hashlib
from pathlib import Path
from typing import Any

from fleet_agent.artifacts.hashing import hash_file
from fleet_agent.jobs.errors import JobProblem, SpecProblem, Stopped
from fleet_agent.jobs.model import VerifyFileStep
from fleet_agent.steps.context import StepContext


def check(step: VerifyFileStep) -> None:
    if not step.path.startswith("/"):
        raise SpecProblem(f"{step.path!r} is no absolute path on the host")


async def run(step: VerifyFileStep, context: StepContext) -> dict[str, Any]:
    return await context.in_thread(_verify, step, context)


def _verify(step: VerifyFileStep, context: StepContext) -> dict[str, Any]:
    path = Path(step.path)
    if not path.exists():
        raise JobProblem("file-missing", f"{path} is not on this host", "copy it there, or correct the path")
    size = path.stat().st_size
    if step.size_bytes is not None and size != step.size_bytes:
        message = f"{path} has {size} bytes instead of {step.size_bytes}"
        raise JobProblem("wrong-length", message, "copy it again: it is truncated or another file")
    result: dict[str, Any] = {"path": str(path), "size_bytes": size}
    if step.sha256:
        result["sha256"] = _sha256(path, size, context)
        if result["sha256"] != step.sha256.lower():
            message = f"{path} has sha256 {result['sha256']} instead of {step.sha256}"
            raise JobProblem("hash-mismatch", message, "copy it again: it is damaged or another file")
    return result


def _sha256(path: Path, size: int, context: StepContext) -> str:
    found, done = hashlib.sha256(), 0

    def on_bytes(count: int) -> None:
        nonlocal done
        if context.cancelled.is_set():
            raise Stopped
        done += count
        context.progress(done, size, "bytes", path.name)

    hash_file(path, found, on_bytes)
    return found.hexdigest()
