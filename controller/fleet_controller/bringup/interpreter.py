"""Which Python an agent gets on a host, and which tool installs its packages: a pure choice with its reason."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fleet_controller.transport.discovery import HostPlatform, PythonFound
from fleet_controller.transport.errors import BringUpFailed

OLDEST_PYTHON = (3, 10)
# What uv brings where the host has nothing; a version that every package of the agent has wheels for.
MANAGED_PYTHON = "3.12"
WAYS_OUT = (
    "three ways out: install Python 3.10 or later on the host (or name one as `python` in hosts.yaml); put an archive "
    "cpython-*-install_only*.tar.gz for its platform into the wheel folder; or set UV_PYTHON_INSTALL_MIRROR in the "
    "host's environment to a mirror that it can reach"
)
_ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


@dataclass(frozen=True)
class InstallChoice:
    """`python` empty: uv brings `MANAGED_PYTHON`, or `archive` is pushed. `push_uv`: uv is pushed as well."""

    python: str = ""
    uv: str = ""
    push_uv: bool = False
    archive: Path | None = None
    description: str = ""


def choose_interpreter(
    host: str, wanted: str | None, platform: HostPlatform, folder: Path | None, mirror: bool
) -> InstallChoice:
    """`wanted` is `python` of hosts.yaml; `folder` the wheel folder; `mirror`: UV_PYTHON_INSTALL_MIRROR is set.

    Raises BringUpFailed where no way leads to Python 3.10 or later.
    """
    usable = [found for found in platform.pythons if found.version[:2] >= OLDEST_PYTHON]
    if wanted:
        usable = [found for found in usable if found in platform.pythons[:1]]
        if not usable:
            raise BringUpFailed(host, f"`python: {wanted}` is missing on the host, or older than 3.10", WAYS_OUT)
    found = _best(usable, folder)
    if found:
        return _with_python(found, platform.uv)
    archive = python_archive(folder, platform)
    if archive:
        return InstallChoice("", platform.uv, not platform.uv, archive, f"Python of {archive.name}")
    if folder and not mirror:
        raise BringUpFailed(host, "it has no Python 3.10 or later, and the wheel folder has none for it", WAYS_OUT)
    return InstallChoice("", platform.uv, not platform.uv, None, f"Python {MANAGED_PYTHON} through uv")


def _with_python(found: PythonFound, uv: str) -> InstallChoice:
    version = ".".join(str(part) for part in found.version)
    tool = "uv" if uv else "pip" if found.makes_venv else "uv, pushed"
    return InstallChoice(found.path, uv, not uv and not found.makes_venv, None, f"Python {version} with {tool}")


def _best(usable: list[PythonFound], folder: Path | None) -> PythonFound | None:
    """The host's first choice; with a wheel folder, the first that the folder has wheels for."""
    tags = _python_tags(folder.glob("grpcio-*.whl")) if folder else set()
    fitting = [found for found in usable if not tags or "cp{}{}".format(*found.version[:2]) in tags]
    return next(iter(fitting), None)


def _python_tags(wheels: Iterable[Path]) -> set[str]:
    return {tag for path in wheels for tag in re.findall(r"cp3\d+", path.name.split("-")[2])}


def platform_words(platform: HostPlatform) -> tuple[str, str]:
    """("linux" | "darwin", "x86_64" | "aarch64"). Raises BringUpFailed for what fleet has no agent for."""
    architecture = _ARCHITECTURES.get(platform.architecture.lower(), "")
    supported = {("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "aarch64")}
    if (platform.os, architecture) not in supported:
        message = f"no agent runs on {platform.os} {platform.architecture}"
        raise BringUpFailed(platform.user, message, "supported: Linux x86_64 and aarch64, macOS arm64")
    return platform.os, architecture


def python_archive(folder: Path | None, platform: HostPlatform) -> Path | None:
    """The newest cpython-*-install_only*.tar.gz (python-build-standalone's names) of the folder for this platform."""
    if folder is None:
        return None
    system, architecture = platform_words(platform)
    words = [architecture, "musl" if platform.libc.startswith("musl") else "gnu" if system == "linux" else "darwin"]
    found = [
        path for path in folder.glob("cpython-3.*install_only*.tar.gz") if all(word in path.name for word in words)
    ]
    return max(found, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)], default=None)
