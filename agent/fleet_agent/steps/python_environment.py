"""A uv virtual environment at <engines_dir>/<install_key>/venv.

Built at <install_key>.tmp/venv with `--relocatable` (entry points find their interpreter beside themselves) and
renamed into place: a half-made environment is never seen under the final name.
Result: {"changed": bool, "path": ..., "install": install.json}.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fleet_agent.configuration import find_host_tool
from fleet_agent.jobs.errors import JobProblem, SpecProblem
from fleet_agent.jobs.model import PythonEnvironmentStep
from fleet_agent.steps.context import StepContext
from fleet_agent.steps.install import Install, check_key, locked

STALL_SECONDS = 1800.0  # a wheel of several GB on a slow line prints nothing meanwhile
PYTHON_REQUEST = re.compile(r"[A-Za-z0-9.@+_-]{1,64}")
TORCH_BACKEND = re.compile(r"[a-z0-9.]{1,16}")


def check(step: PythonEnvironmentStep) -> None:
    check_key(step.install_key, "install key")
    if not step.requirements:
        raise SpecProblem(f"python environment {step.install_key!r} has no requirement")
    for requirement in (*step.requirements, *step.overrides):
        # What a requirements file may hold besides requirements begins with a dash; a line end would begin another.
        if requirement.startswith("-") or any(sign in requirement for sign in "\n\r\0"):
            raise SpecProblem(f"{requirement!r} is no requirement")
    if step.python and (not PYTHON_REQUEST.fullmatch(step.python) or step.python.startswith("-")):
        raise SpecProblem(f"{step.python!r} is no Python version")
    if step.torch_backend and not TORCH_BACKEND.fullmatch(step.torch_backend):
        raise SpecProblem(f"{step.torch_backend!r} is no torch backend")
    if any(not folder.startswith("/") for folder in step.find_links):
        raise SpecProblem("find_links are absolute folders on the host")
    if any(urlsplit(url).scheme != "https" for url in step.extra_index_urls):
        raise SpecProblem("an extra index is reached by https only")


def venv_argv(uv: str, step: PythonEnvironmentStep, venv: str) -> list[str]:
    """`uv venv`: the agent's own interpreter where the step names none."""
    return [uv, "venv", "--relocatable", "--python", step.python or sys.executable, venv]


def install_argv(uv: str, step: PythonEnvironmentStep, venv: str, overrides_file: str) -> list[str]:
    """`uv pip install` into that environment."""
    argv = [uv, "pip", "install", "--python", f"{venv}/bin/python3"]
    if step.torch_backend:
        argv.append(f"--torch-backend={step.torch_backend}")
    if step.no_index:
        argv.append("--no-index")
    for folder in step.find_links:
        argv += ["--find-links", folder]
    for url in step.extra_index_urls:
        argv += ["--extra-index-url", url]
    if step.prerelease:
        argv += ["--prerelease", "allow"]
    if step.overrides:
        argv += ["--overrides", overrides_file]
    return [*argv, *step.requirements]


async def run(step: PythonEnvironmentStep, context: StepContext) -> dict[str, Any]:
    install = Install.at(step.install_key, step.backend, step.version, context.layout.engines_dir)
    async with locked(context, step.install_key):
        if install.present:
            return install.result(changed=False)
        install.clean()
        try:
            await _build(step, install, context)
        except BaseException:
            install.clean()
            raise
        return install.result(changed=True)


async def _build(step: PythonEnvironmentStep, install: Install, context: StepContext) -> None:
    uv = str(find_uv(context))
    venv = install.staging / "venv"
    install.staging.mkdir(parents=True)
    overrides = install.staging / "overrides.txt"
    if step.overrides:
        overrides.write_text("\n".join(step.overrides) + "\n")
    made = await context.run_child(venv_argv(uv, step, str(venv)), stall_seconds=STALL_SECONDS)
    if made.exit_code != 0:
        remedy = "install that Python on the host, or set UV_PYTHON_INSTALL_MIRROR for it in hosts.yaml"
        raise context.child_failed("uv venv", made, install.final, "python-environment", remedy)
    argv = install_argv(uv, step, str(venv), str(overrides))
    done = await context.run_child(argv, stall_seconds=STALL_SECONDS)
    if done.exit_code != 0:
        remedy = "where the package index cannot be reached, name a mirror with UV_DEFAULT_INDEX in hosts.yaml"
        raise context.child_failed("uv pip install", done, install.final, "python-environment", remedy)
    options = {"python": step.python, "requirements": list(step.requirements), "overrides": list(step.overrides)}
    install.finish(options, ["venv/bin/python3"])


def find_uv(context: StepContext) -> Path:
    """uv of the agent's own environment first: bring-up pinned it there. Raises JobProblem."""
    own = Path(sys.executable).parent / "uv"
    found = own if os.access(own, os.X_OK) else find_host_tool("uv", context.configuration)
    if found is None:
        raise JobProblem("tool-missing", "uv is not on this host", "run `fleet up` for it again: it brings uv along")
    return found
