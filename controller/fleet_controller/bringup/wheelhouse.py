"""Wheels for a host's platform: fetched by the controller, or taken from a folder, to be pushed."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import shutil
import sys
import zipfile
from pathlib import Path

from fleet_controller.bringup.interpreter import platform_words
from fleet_controller.transport.discovery import HostPlatform
from fleet_controller.transport.errors import BringUpFailed

FETCH_SECONDS = 900.0
# The newest libc that wheels may ask for; glibc tags up to the host's own version fit.
_OLDEST_GLIBC_MINOR = 17
_MACOS_NEWEST = 15


def wheel_platforms(platform: HostPlatform) -> list[str]:
    """Platform tags whose wheels run on a host, newest first (PEP 600, PEP 656)."""
    system, architecture = platform_words(platform)
    if system == "darwin":
        return [
            f"macosx_{major}_0_{kind}" for major in range(_MACOS_NEWEST, 10, -1) for kind in ("arm64", "universal2")
        ]
    if platform.libc.startswith("musl"):
        return [f"musllinux_1_{minor}_{architecture}" for minor in (2, 1)]
    version = re.search(r"2\.(\d+)", platform.libc)
    newest = int(version.group(1)) if version else _OLDEST_GLIBC_MINOR
    tags = [f"manylinux_2_{minor}_{architecture}" for minor in range(newest, 4, -1)]
    return [*tags, f"manylinux2014_{architecture}", f"manylinux1_{architecture}"]


async def fetch_wheels(folder: Path, requirements: str, platform: HostPlatform, python: tuple[int, int]) -> None:
    """Downloads the wheels of a requirements file for a host's platform and Python into a folder.

    The index is the one that pip is set up with on this machine. Hashes are checked. Raises BringUpFailed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = folder / "requirements.txt"
    wanted.write_text(for_python(requirements, python), encoding="utf-8")
    await _pip_download(["--require-hashes", "-r", str(wanted), *_target(platform, python), "-d", str(folder)])


async def fetch_uv(folder: Path, platform: HostPlatform) -> Path:
    """uv's own wheel for a host's platform, in a folder. Raises BringUpFailed."""
    folder.mkdir(parents=True, exist_ok=True)
    await _pip_download(["--no-deps", "uv", *_target(platform, (3, 12)), "-d", str(folder)])
    found = uv_wheel(folder, platform)
    if found is None:
        raise BringUpFailed(platform.user, "the index has no wheel of uv for this platform", "install uv on the host")
    return found


def uv_wheel(folder: Path | None, platform: HostPlatform) -> Path | None:
    """uv's wheel for a platform, where the folder has one."""
    tags = wheel_platforms(platform)
    wheels = sorted(folder.glob("uv-*.whl"), reverse=True) if folder else []
    fitting = (path for path in wheels if any(tag in tags for tag in path.stem.split("-")[-1].split(".")))
    return next(fitting, None)


def uv_binary(wheel: Path) -> bytes:
    """The uv program inside its wheel. Raises KeyError where the wheel has none."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".data/scripts/uv"))
        return archive.read(name)


def for_python(requirements: str, python: tuple[int, int]) -> str:
    """The requirements that apply to a Python version, without their markers.

    pip reads markers for the Python that it runs in, not for the one it downloads for. The markers that make lock
    writes compare python_full_version and sys_platform only; platforms other than ours are left out.
    """
    environment = {"python_full_version": f"{python[0]}.{python[1]}.99"}
    kept = []
    for entry in re.split(r"\n(?=\S)", requirements):
        first, _, hashes = entry.partition("\\\n")
        name, _, marker = first.partition(";")
        if not name.strip() or name.startswith("#") or not _applies(marker.strip(), environment):
            continue
        kept.append(f"{name.strip()} \\\n{hashes}" if hashes else name.strip())
    return "\n".join(kept) + "\n"


def _applies(marker: str, environment: dict[str, str]) -> bool:
    """Whether a marker that joins comparisons with `and` can be true on Linux or macOS under this Python."""
    for left, operator, right in re.findall(r"(\w+) (==|!=|<=|>=|<|>) '([^']*)'", marker):
        if left == "python_full_version" and not _compare(environment[left], operator, right):
            return False
        if left == "sys_platform" and operator == "==" and right not in ("linux", "darwin"):
            return False
    return True


def _compare(left: str, operator: str, right: str) -> bool:
    ours, theirs = ([int(part) for part in text.split(".") if part.isdigit()] for text in (left, right))
    ours = ours[: len(theirs)] if operator in ("==", "!=") else ours
    return {
        "==": ours == theirs, "!=": ours != theirs, "<": ours < theirs,
        "<=": ours <= theirs, ">": ours > theirs, ">=": ours >= theirs,
    }[operator]  # fmt: skip


def _target(platform: HostPlatform, python: tuple[int, int]) -> list[str]:
    version = f"{python[0]}{python[1]}"
    abis = [f"cp{version}", "abi3", "none"]
    arguments = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", f"{python[0]}.{python[1]}"]
    arguments += [item for tag in wheel_platforms(platform) for item in ("--platform", tag)]
    return arguments + [item for abi in abis for item in ("--abi", abi)]


def _pip() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    uv = shutil.which("uv")
    if uv:
        return [uv, "tool", "run", "pip"]
    raise BringUpFailed("this machine", "neither pip nor uv is here to fetch wheels", "install uv on this machine")


async def _pip_download(arguments: list[str]) -> None:
    command = [*_pip(), "download", "--quiet", "--no-input", "--disable-pip-version-check", *arguments]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(FETCH_SECONDS):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        reason = " ".join(output.decode(errors="replace").strip().splitlines()[-2:])
        raise BringUpFailed("this machine", f"wheels could not be fetched: {reason}", "give a folder that has them")
