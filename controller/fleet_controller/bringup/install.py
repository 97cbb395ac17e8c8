"""Puts one version of the agent on a host, beside those that are there."""

from __future__ import annotations

import asyncio
import io
import json
import secrets
import sys
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

from fleet_controller.bringup import wheelhouse
from fleet_controller.bringup.interpreter import MANAGED_PYTHON, WAYS_OUT, InstallChoice, platform_words
from fleet_controller.bringup.options import UpOptions
from fleet_controller.bringup.wheels import Release
from fleet_controller.domain.events import HostEvent
from fleet_controller.transport.deploy_files import deploy_text
from fleet_controller.transport.discovery import HostPlatform, parse_answers, place_variables
from fleet_controller.transport.errors import BringUpFailed
from fleet_controller.transport.link import HostLink, exports
from fleet_inventory.hosts import Host

INSTALL_SECONDS = 900.0
# What bring-up passes on from the host's `environment`: how uv and pip reach an index, a mirror, a proxy.
_NETWORK_PREFIXES = ("UV_", "PIP_")
_NETWORK_NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")

_FAILURES = {
    "no-python": ("it has no Python 3.10 or later, and uv could not bring one", WAYS_OUT),
    "old-python": ("its Python is older than 3.10", WAYS_OUT),
    "python-archive": ("the archive of Python could not be unpacked", "check the file in the wheel folder"),
    "environment": ("the virtual environment could not be made", "install python3-venv, or uv, on the host"),
    "requirements": (
        "the agent's packages could not be installed",
        "has the host an index that it can reach? else give wheels: fleet up --wheels FOLDER",
    ),
    "wheels": ("the agent itself could not be installed", "fleet up --force"),
    "layout": ("the agent could not tell its folders", "look at FLEET_RUNTIME_DIR and agent.json on the host"),
    "broken": ("the new agent does not start; what ran before runs on", "install another version of fleet"),
}


@dataclass(frozen=True)
class Installed:
    """A version on a host. `layout` is what `python -m fleet_agent layout` says; `fresh`: it was installed just now."""

    layout: dict[str, Any]
    fresh: bool


@dataclass(frozen=True)
class Push:
    """What is sent, and what install.sh is told about it."""

    files: dict[str, bytes]
    variables: dict[str, str]


def pack(files: Mapping[str, bytes], executable: tuple[str, ...] = ()) -> bytes:
    """A tar archive of small files, readable by their owner only."""
    buffer = io.BytesIO()
    # GNU format: names of wheels can be longer than the 100 characters of the older one.
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o700 if name in executable else 0o600
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def borrowed_prefix(host: Host) -> str:
    """On this machine the agent may run from the controller's own environment, when that has it: nothing to install."""
    if host.transport != "local" or host.python:
        return ""
    return sys.prefix if util.find_spec("fleet_agent") and (Path(sys.prefix) / "bin" / "python").exists() else ""


async def install(
    link: HostLink, host: Host, platform: HostPlatform, choice: InstallChoice, release: Release, options: UpOptions,
    report: Callable[[HostEvent], None],
) -> Installed:  # fmt: skip
    """Pushes and installs a release. Raises BringUpFailed with what to do; a failed install leaves nothing behind."""
    borrowed = borrowed_prefix(host) if options.release is None else ""
    push = Push({}, {"FLEET_BORROW": borrowed}) if borrowed else await _gather(host, platform, choice, release, options)
    upload = f"{platform.root}/uploads/{secrets.token_hex(8)}"
    files = {**release.wheels, "requirements.txt": release.requirements.encode(), **push.files}
    archive = await asyncio.to_thread(pack, files, ("uv",))

    def pushed(done_bytes: int) -> None:
        report(_progress(host, "push", "sending the agent", done_bytes, len(archive)))

    await link.unpack(archive, upload, pushed)
    variables = {
        **{name: value for name, value in host.environment.items() if _is_network(name)},
        **place_variables(host),
        "FLEET_UPLOAD": upload,
        "FLEET_VERSION": release.name,
        "FLEET_PYTHON": sys.executable if borrowed else choice.python,
        "FLEET_UV": choice.uv,
        "FLEET_PYTHON_REQUEST": MANAGED_PYTHON,
        "FLEET_FORCE": "yes" if options.force else "",
        **push.variables,
    }

    def seen(line: str) -> None:
        if line.startswith("fleet:stage="):
            stage = line.partition("=")[2]
            report(
                HostEvent(host=host.name, stage=stage, message=f"{_STAGES.get(stage, stage)} ({choice.description})")
            )

    result = await link.run_script(exports(variables) + deploy_text("bootstrap/install.sh"), INSTALL_SECONDS, seen)
    answers = parse_answers(result.stdout)
    if not result.ok or "layout" not in answers:
        raise _failure(host, answers.get("failed", [""])[0], result.tail(4))
    return Installed(json.loads(answers["layout"][0]), "installed" in answers)


_STAGES = {
    "python": "finding Python",
    "environment": "making the virtual environment",
    "install": "installing the agent's packages",
}


def _progress(host: Host, stage: str, message: str, done: int, total: int) -> HostEvent:
    return HostEvent(host=host.name, stage=stage, message=message, done_units=done, total_units=total, unit="bytes")


def _is_network(name: str) -> bool:
    return name.startswith(_NETWORK_PREFIXES) or name.upper() in _NETWORK_NAMES


def _failure(host: Host, reason: str, printed: str) -> BringUpFailed:
    message, remedy = _FAILURES.get(reason, ("the install script failed", f"fleet up --force {host.name}"))
    return BringUpFailed(host.name, f"{message}: {printed}" if printed else message, remedy)


async def _gather(
    host: Host, platform: HostPlatform, choice: InstallChoice, release: Release, options: UpOptions
) -> Push:
    """Wheels, uv and Python, where the host needs them from us."""
    files: dict[str, bytes] = {}
    variables: dict[str, str] = {}
    folder = options.wheel_folder
    if folder is not None and not folder.is_dir():
        raise BringUpFailed(host.name, f"the wheel folder {folder} is not there", "fleet up --wheels FOLDER")
    if options.fetch_wheels and folder is None:
        async with options.fetching:
            folder = await _fetched(platform, choice, release)
    if folder is not None:
        files |= await asyncio.to_thread(_third_party_wheels, folder, platform)
        variables["FLEET_WHEELS"] = "wheels"
    if choice.push_uv:
        async with options.fetching:
            wheel = wheelhouse.uv_wheel(folder, platform) or await wheelhouse.fetch_uv(_cache(), platform)
        files["uv"] = await asyncio.to_thread(wheelhouse.uv_binary, wheel)
        system, architecture = platform_words(platform)
        variables["FLEET_UV_PUSHED"] = f"uv-{wheel.name.split('-')[1]}-{system}-{architecture}"
    if choice.archive:
        files[choice.archive.name] = await asyncio.to_thread(choice.archive.read_bytes)
        variables["FLEET_PYTHON_ARCHIVE"] = choice.archive.name
    return Push(files, variables)


def _third_party_wheels(folder: Path, platform: HostPlatform) -> dict[str, bytes]:
    """The folder's wheels that can run on the host, uv's among them: the agent's environment has a uv of its own."""
    tags = {*wheelhouse.wheel_platforms(platform), "any"}
    wheels = [path for path in sorted(folder.glob("*.whl")) if not path.name.startswith("llmfleet_")]
    fitting = [path for path in wheels if tags & set(path.stem.split("-")[-1].split("."))]
    return {f"wheels/{path.name}": path.read_bytes() for path in fitting}


async def _fetched(platform: HostPlatform, choice: InstallChoice, release: Release) -> Path:
    version = next((found.version for found in platform.pythons if found.path == choice.python), None)
    python = (version[0], version[1]) if version else tuple(int(part) for part in MANAGED_PYTHON.split("."))[:2]
    system, architecture = platform_words(platform)
    libc = platform.libc.replace(" ", "-") or "any"  # a wheel for a newer libc does not run on an older one
    folder = _cache() / f"{release.name}-{system}-{architecture}-{libc}-cp{python[0]}{python[1]}"
    if not (folder / "complete").exists():
        await wheelhouse.fetch_wheels(folder, release.requirements, platform, (python[0], python[1]))
        (folder / "complete").touch()
    return folder


def _cache() -> Path:
    return Path.home() / ".cache" / "fleet" / "wheels"
