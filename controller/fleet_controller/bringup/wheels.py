"""What is pushed to a host: our two wheels, made from the files that this process runs from.

A wheel of pure Python is a zip archive with three more files, so it is written here: the same in a source checkout
and in an installation, without a build tool or an index, and the same bytes for the same files.
Format: PEP 427 and the binary distribution format of packaging.python.org.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path

from fleet_controller.transport.deploy_files import deploy_text

_OWN_DISTRIBUTIONS = (("llmfleet-proto", "fleet_proto"), ("llmfleet-agent", "fleet_agent"))
_EARLIEST_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_SKIPPED_SUFFIXES = (".pyc", ".pyo", ".proto")


@dataclass(frozen=True)
class Release:
    """One version of the agent. `name`, its folder's, is the distribution's version and a digest of the content."""

    name: str
    wheels: dict[str, bytes]
    requirements: str


@lru_cache(maxsize=1)
def agent_release() -> Release:
    """The agent that this process would install. Raises FileNotFoundError where its files are not installed here."""
    wheels = dict(_wheel(distribution, package) for distribution, package in _OWN_DISTRIBUTIONS)
    requirements = deploy_text("agent-requirements.txt")
    return release_of(wheels, requirements)


def release_of(wheels: dict[str, bytes], requirements: str) -> Release:
    """A release of these wheels. Its name changes with any byte of them, of the requirements or of agentctl."""
    digest = hashlib.sha256()
    parts = [*(wheels[name] for name in sorted(wheels)), requirements.encode()]
    parts += [deploy_text(f"bootstrap/{name}.sh").encode() for name in ("agentctl", "install")]
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    agent_wheel = next(name for name in wheels if name.startswith("llmfleet_agent-"))
    return Release(f"{agent_wheel.split('-')[1]}+{digest.hexdigest()[:12]}", wheels, requirements)


def _wheel(distribution: str, package: str) -> tuple[str, bytes]:
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise FileNotFoundError(
            f"this installation of fleet lacks {distribution}; install it beside the controller"
        ) from None
    return build_wheel(distribution, version, _package_folder(package), _requires(distribution))


def _package_folder(package: str) -> Path:
    spec = util.find_spec(package)  # finds, does not import: the controller never runs the agent's code
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"this installation of fleet lacks the package {package}; install it again")
    return Path(next(iter(spec.submodule_search_locations)))


def _requires(distribution: str) -> list[str]:
    return [name for name in metadata.requires(distribution) or () if "extra ==" not in name]


def build_wheel(distribution: str, version: str, folder: Path, requires: list[str]) -> tuple[str, bytes]:
    """File name and content of the wheel of one package folder."""
    name = distribution.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    files = dict(_package_files(folder))
    lines = ["Metadata-Version: 2.1", f"Name: {distribution}", f"Version: {version}", "Requires-Python: >=3.10"]
    files[f"{info}/METADATA"] = "\n".join([*lines, *(f"Requires-Dist: {item}" for item in requires), ""]).encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: fleet\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = [f"{path},sha256={_record_hash(data)},{len(data)}" for path, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            entry = zipfile.ZipInfo(path, _EARLIEST_ZIP_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return f"{name}-{version}-py3-none-any.whl", buffer.getvalue()


def _package_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in _SKIPPED_SUFFIXES:
            yield f"{folder.name}/{path.relative_to(folder).as_posix()}", path.read_bytes()


def _record_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
