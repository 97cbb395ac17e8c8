"""The agent's third-party wheels for this machine, fetched once: hosts in network namespaces reach no index."""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import shutil
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

from fleet_controller.bringup.wheelhouse import fetch_uv, fetch_wheels
from fleet_controller.bringup.wheels import Release, agent_release, release_of
from fleet_controller.transport.deploy_files import deploy_text
from fleet_controller.transport.discovery import HostPlatform

# What the hosts in namespaces have: this machine's own system Python.
HOST_PYTHON = "/usr/bin/python3"


def this_platform() -> HostPlatform:
    libc, version = platform.libc_ver()
    return HostPlatform(root="/", os="linux", architecture=platform.machine(), libc=f"{libc} {version}")


def wheels_for(python: tuple[int, int], with_uv: bool = False) -> Path:
    """A folder of wheels for one version of Python on this machine, kept in FLEET_CI_CACHE or the user's cache."""
    requirements = deploy_text("agent-requirements.txt")
    digest = hashlib.sha256(requirements.encode()).hexdigest()[:12]
    base = Path(os.environ.get("FLEET_CI_CACHE") or Path("~/.cache/fleet-ci").expanduser())
    folder = base / "agent-wheels" / f"{digest}-cp{python[0]}{python[1]}{'-uv' if with_uv else ''}"
    if not (folder / "complete").exists():
        draft = folder.with_name(f"{folder.name}.{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)
        asyncio.run(_fetch(draft, requirements, python, with_uv))
        (draft / "complete").touch()
        try:
            draft.rename(folder)
        except OSError:
            shutil.rmtree(draft)  # another test run was first
    return folder


async def _fetch(folder: Path, requirements: str, python: tuple[int, int], with_uv: bool) -> None:
    await fetch_wheels(folder, requirements, this_platform(), python)
    if with_uv:
        await fetch_uv(folder, this_platform())


def release_with(name: str, source: str) -> Release:
    """This agent with one file replaced."""
    wheels = {}
    for wheel, data in agent_release().wheels.items():
        old, buffer = ZipFile(BytesIO(data)), BytesIO()
        with ZipFile(buffer, "w") as new:
            for entry in old.namelist():
                if entry.endswith("/RECORD"):
                    kept = [line for line in old.read(entry).decode().splitlines() if not line.startswith(name)]
                    new.writestr(entry, "\n".join([*kept, f"{name},,", ""]) if len(kept) else "")
                else:
                    new.writestr(entry, source if entry == name else old.read(entry))
        wheels[wheel] = buffer.getvalue()
    return release_of(wheels, agent_release().requirements)
