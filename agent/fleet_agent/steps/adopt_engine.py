"""Existing binaries on the host become an install of ours: links, nothing copied or changed.

The version is what the program itself says. Result: {"changed": bool, "path": ..., "install": install.json}.
"""

import os
import re
from pathlib import Path
from typing import Any

from fleet_agent.jobs.errors import JobProblem, SpecProblem
from fleet_agent.jobs.model import AdoptEngineStep
from fleet_agent.steps.context import StepContext
from fleet_agent.steps.install import Install, check_key, locked

VERSION_SECONDS = 60.0
# llama.cpp prints "version: 11434 (d1f2a3b)" on stderr.
VERSION = re.compile(r"version:?\s+v?([0-9][0-9A-Za-z.+-]*)", re.IGNORECASE)


def check(step: AdoptEngineStep) -> None:
    check_key(step.install_key, "install key")
    if not step.path.startswith("/"):
        raise SpecProblem(f"{step.path!r} is no absolute folder on the host")
    if not step.binaries:
        raise SpecProblem("no binary named to adopt")
    for name in step.binaries:
        if name in ("", ".", "..") or "/" in name or name.startswith("-"):
            raise SpecProblem(f"{name!r} is no plain file name")


async def run(step: AdoptEngineStep, context: StepContext) -> dict[str, Any]:
    install = Install.at(step.install_key, step.backend, step.version, context.layout.engines_dir)
    async with locked(context, step.install_key):
        if install.present and _same_links(step, install):
            return install.result(changed=False)
        folder = Path(step.path)
        for name in step.binaries:
            if not (folder / name).is_file() or not os.access(folder / name, os.X_OK):
                message = f"there is no program {name} in {folder}"
                raise JobProblem("engine-missing", message, "name the folder that holds the built binaries")
        version = await _ask_version(folder, step.binaries, context)
        install.clean()
        try:
            _link(step, install, folder)
            final = Install.at(install.key, install.backend, step.version or version, context.layout.engines_dir)
            final.finish(
                {"adopted": True}, [f"bin/{name}" for name in step.binaries],
                adopted_path=str(folder), reported_version=version,
            )  # fmt: skip
        finally:
            install.clean()
        return install.result(changed=True)


def _same_links(step: AdoptEngineStep, install: Install) -> bool:
    return all(
        (install.final / "bin" / name).resolve() == (Path(step.path) / name).resolve()
        and os.access(install.final / "bin" / name, os.X_OK)
        for name in step.binaries
    )


def _link(step: AdoptEngineStep, install: Install, folder: Path) -> None:
    (install.staging / "bin").mkdir(parents=True)
    for name in step.binaries:
        (install.staging / "bin" / name).symlink_to(folder / name)


async def _ask_version(folder: Path, binaries: tuple[str, ...], context: StepContext) -> str:
    """What `--version` of the server (else of the first binary) says. Raises JobProblem where it does not run."""
    name = "llama-server" if "llama-server" in binaries else binaries[0]
    said: list[str] = []

    def on_line(stream: str, text: str) -> bool:
        said.append(text)
        return False

    result = await context.run_child([folder / name, "--version"], deadline_seconds=VERSION_SECONDS, on_line=on_line)
    if result.exit_code != 0:
        remedy = "it may be built for another machine or miss a library: start it by hand on the host"
        raise context.child_failed(f"{name} --version", result, folder, "engine-broken", remedy)
    found = VERSION.search("\n".join(said))
    return found[1] if found else ""
