"""A checkout at <engines_dir>/sources/<key>, kept for later builds: all commits, but only the files of the ref.

The history is fetched without file contents (--filter=blob:none), because llama.cpp counts its commits to name
its version. Result: {"changed": bool, "path": ..., "commit": "40 hex digits"}.
"""

import re
import shutil
from pathlib import Path
from typing import Any

from fleet_agent.jobs.errors import JobProblem, SpecProblem
from fleet_agent.jobs.model import GitCheckoutStep
from fleet_agent.steps.context import ChildResult, StepContext
from fleet_agent.steps.install import check_key, locked

STALL_SECONDS = 900.0
URL = re.compile(
    r"(https://|ssh://)[A-Za-z0-9][A-Za-z0-9@:._~/+-]*|[A-Za-z0-9_.-]+@[A-Za-z0-9][A-Za-z0-9.-]*:[^\s:-]\S*"
)
REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+@-]{0,200}")
# No prompt can be answered here; no other protocol, so that a redirect or a submodule cannot bring one in.
GIT_ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "https:ssh",
    "GIT_SSH_COMMAND": "ssh -o BatchMode=yes",
    "LC_ALL": "C",
}


def check(step: GitCheckoutStep) -> None:
    check_key(step.source_key, "source key")
    if not URL.fullmatch(step.url):
        raise SpecProblem(f"{step.url!r} is no https or ssh URL", "name the repository as https://... or ssh://...")
    if not REF.fullmatch(step.ref) or ".." in step.ref or "@{" in step.ref or step.ref.endswith((".lock", "/", ".")):
        raise SpecProblem(f"{step.ref!r} is no tag, branch or commit")


async def run(step: GitCheckoutStep, context: StepContext) -> dict[str, Any]:
    folder = context.layout.sources_dir / step.source_key
    async with locked(context, f"source-{step.source_key}"):
        if (folder / ".git").is_dir():
            before = await _head(context, folder)
            await _update(step, context, folder)
        else:
            before = ""
            await _clone(step, context, folder)
        commit = await _head(context, folder)
        return {"changed": commit != before, "path": str(folder), "commit": commit}


async def _clone(step: GitCheckoutStep, context: StepContext, folder: Path) -> None:
    staging = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.parent.mkdir(parents=True, exist_ok=True)
    try:
        words = ("clone", "--filter=blob:none", "--no-checkout", "--progress", step.url, str(staging))
        await _git(context, "git clone", *words)
        await _check_out(step, context, staging)
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


async def _update(step: GitCheckoutStep, context: StepContext, folder: Path) -> None:
    await _git(context, "git remote", "-C", str(folder), "remote", "set-url", "origin", step.url)
    if not re.fullmatch(r"[0-9a-f]{40}", step.ref) or await _commit_of(context, folder, step.ref) is None:
        await _git(context, "git fetch", "-C", str(folder), "fetch", "--tags", "--force", "--prune", "origin")
    await _check_out(step, context, folder)


async def _check_out(step: GitCheckoutStep, context: StepContext, folder: Path) -> None:
    for name in (f"refs/tags/{step.ref}", f"refs/remotes/origin/{step.ref}", step.ref):
        commit = await _commit_of(context, folder, name)
        if commit is not None:
            await _git(context, "git checkout", "-C", str(folder), "checkout", "--force", "--detach", commit)
            return
    raise JobProblem("unknown-ref", f"{step.url} has no {step.ref!r}", "name a tag, a branch or a full commit")


async def _commit_of(context: StepContext, folder: Path, name: str) -> str | None:
    argv = [context.tool("git"), "-C", folder, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"]
    result = await context.run_child(argv, private_environment=GIT_ENVIRONMENT, capture=True)
    return result.stdout.strip() or None


async def _head(context: StepContext, folder: Path) -> str:
    return await _commit_of(context, folder, "HEAD") or ""


async def _git(context: StepContext, what: str, *words: str) -> ChildResult:
    argv = [context.tool("git"), *words]
    result = await context.run_child(
        argv, private_environment=GIT_ENVIRONMENT, stall_seconds=STALL_SECONDS, on_line=_progress_of(context)
    )
    if result.exit_code != 0:
        remedy = "check the URL, and that this user can reach it from the host without a password"
        raise context.child_failed(what, result, context.layout.sources_dir, "git-failed", remedy)
    return result


def _progress_of(context: StepContext) -> Any:
    """git's "Receiving objects:  42% (1234/2938), 3.10 MiB" as progress instead of log lines."""

    def on_line(stream: str, text: str) -> bool:
        found = re.search(r"([A-Z][a-z]+(?: [a-z]+)*):\s+\d+% \((\d+)/(\d+)\)", text)
        if found is None:
            return False
        context.progress(int(found[2]), int(found[3]), "objects", found[1])
        return True

    return on_line
