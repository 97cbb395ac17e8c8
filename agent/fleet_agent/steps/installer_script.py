"""A maker's own install script, for the one program that comes in no other way: LM Studio.

What runs is what a person agreed to: the script's sha256 is part of the step, and a script that has changed since is
not run. It stays in <machine>/installers, to be read later. No argument of it comes from outside.
Result: {"changed": bool, "path": of the tool that it brought}.
"""

import hashlib
import re
import urllib.error
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fleet_agent.addresses import is_loopback
from fleet_agent.artifacts.http import CONNECTION_ERRORS, Source, open_url
from fleet_agent.configuration import find_host_tool
from fleet_agent.jobs.errors import JobProblem, SpecProblem
from fleet_agent.jobs.model import InstallerScriptStep
from fleet_agent.layout import ensure_private_folder
from fleet_agent.steps.context import StepContext
from fleet_agent.steps.install import locked

BROUGHT_TOOLS = ("lms",)
SHELL = "/bin/bash"  # the official command pipes the script into bash
LARGEST_SCRIPT_BYTES = 1 << 20
STALL_SECONDS = 900.0
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


def check(step: InstallerScriptStep) -> None:
    parts = urlsplit(step.url)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        raise SpecProblem(f"{step.url!r} is no https URL")
    if not _SHA256.match(step.sha256):
        raise SpecProblem(f"{step.url} needs its sha256", "an address says where from, only a hash says what")
    if step.tool not in BROUGHT_TOOLS:
        raise SpecProblem(f"no install script brings {step.tool!r}", f"one may bring {', '.join(BROUGHT_TOOLS)}")


async def run(step: InstallerScriptStep, context: StepContext) -> dict[str, Any]:
    async with locked(context, f"installer-{step.tool}"):
        present = find_host_tool(step.tool, context.configuration)
        if present is not None:
            return {"changed": False, "path": str(present)}
        script = await context.in_thread(_fetch, step, context.layout.machine_dir / "installers")
        result = await context.run_child([SHELL, script], stall_seconds=STALL_SECONDS)
        if result.exit_code != 0:
            raise context.child_failed("the install script", result, script, "installer-failed")
        brought = find_host_tool(step.tool, context.configuration)
        if brought is None:
            message = f"the install script ended well, but {step.tool} is in none of the folders that are looked into"
            remedy = f"name its path under `tools` of this host in hosts.yaml, then `fleet up` it again; {script} ran"
            raise JobProblem("tool-missing", message, remedy)
        return {"changed": True, "path": str(brought)}


def _fetch(step: InstallerScriptStep, folder: Path) -> Path:
    """The script as a file. Raises JobProblem "download-failed" or "hash-mismatch"."""
    try:
        with open_url(Source(step.url)) as response:
            body: bytes = response.read(LARGEST_SCRIPT_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise JobProblem("download-failed", f"{step.url} answers {error.code}", "try again later") from None
    except CONNECTION_ERRORS as error:
        reason = getattr(error, "reason", error)
        message = f"{step.url} cannot be reached from this host: {reason}"
        raise JobProblem("download-failed", message, "check its network, and HTTPS_PROXY in hosts.yaml") from None
    found = hashlib.sha256(body).hexdigest()
    if found != step.sha256:
        message = f"{step.url} is another script now than the one that was agreed to: sha256 {found}"
        raise JobProblem("hash-mismatch", message, "nothing was run; repeat the command to be asked about this one")
    ensure_private_folder(folder)
    script = folder / f"{step.sha256}.sh"
    part = script.with_suffix(".part")
    part.write_bytes(body)
    part.replace(script)
    return script
