"""Backends on this host: our installs, and what others put on the PATH.

No engine is started to ask its version except llama-server, which answers in milliseconds (`vllm --version` takes
more than half a minute): Python packages are looked up in the metadata beside their launcher.
"""

import datetime
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleet_agent.configuration import find_host_tool, tool_folders
from fleet_agent.engines.served import served_unix_ms
from fleet_agent.engines.sizes import install_files
from fleet_agent.probes.model import EngineFacts, ProbeContext
from fleet_agent.probes.reading import read_text, version_text

# backend, launcher on the PATH, distribution whose metadata tells the version
_PYTHON_ENGINES = (
    ("mlx-lm", "mlx_lm.server", "mlx_lm"),
    ("vllm", "vllm", "vllm"),
    ("sglang", "sglang", "sglang"),
)


def read(context: ProbeContext) -> tuple[EngineFacts, ...]:
    ours = tuple(_managed(context.layout.engines_dir))
    return ours + tuple(_on_path(context))


def _managed(engines_dir: Path) -> list[EngineFacts]:
    found = []
    for file in install_files(engines_dir):
        facts = parse_install(file.parent, read_text(file) or "")
        if facts is not None:
            found.append(facts)
    return found


def parse_install(folder: Path, text: str) -> EngineFacts | None:
    """An install of ours from its install.json; None for a file that is not one (it is written last, in one piece)."""
    try:
        document: Any = json.loads(text)
    except ValueError:
        return None
    if not isinstance(document, Mapping) or not isinstance(document.get("backend"), str):
        return None
    version, size = document.get("version"), document.get("size_bytes")
    return EngineFacts(
        backend=document["backend"],
        path=str(folder),
        version=str(version) if version else None,
        managed=True,
        install_key=folder.name,
        size_bytes=size if isinstance(size, int) else None,
        created_unix_ms=parse_created(document.get("created")),
        served_unix_ms=served_unix_ms(folder),
        flags=_flags(document.get("flags")),
    )


def _flags(value: Any) -> tuple[str, ...]:
    """The options that the server listed when it was installed; () = not known."""
    return tuple(str(flag) for flag in value) if isinstance(value, list) else ()


def parse_created(value: Any) -> int | None:
    """Unix milliseconds of install.json's "2026-11-24T19:40:00+00:00"."""
    try:
        return int(datetime.datetime.fromisoformat(value).timestamp() * 1000)
    except (TypeError, ValueError):
        return None


def _on_path(context: ProbeContext) -> list[EngineFacts]:
    found = []
    server = _find("llama-server")
    if server is not None:
        version = parse_llama_version(version_text(server, "--version", limit_seconds=2.0) or "")
        found.append(EngineFacts("llama.cpp", str(server), version))
    for backend, launcher, distribution in _PYTHON_ENGINES:
        path = _find(launcher)
        if path is not None:
            found.append(EngineFacts(backend, str(path), packaged_version(path, distribution)))
    lms = find_host_tool("lms", context.configuration)
    if lms is not None:
        found.append(EngineFacts("lm-studio", str(lms)))
    return found


def _find(name: str) -> Path | None:
    found = shutil.which(name, path=":".join(tool_folders()))
    return Path(found) if found else None


def parse_llama_version(text: str) -> str | None:
    """ "b6543" of "version: 6543 (abc123)", or the number of "version: 0.6.0-dev (build 11434, ...)"."""
    found = re.search(r"^version: \S+ \(build (\d+)", text, re.MULTILINE) or re.search(
        r"^version: (\d+) ", text, re.MULTILINE
    )
    if found and found.group(1) != "0":
        return f"b{found.group(1)}"
    named = re.search(r"^version: (\S+)", text, re.MULTILINE)
    return named.group(1) if named else None


def packaged_version(launcher: Path, distribution: str) -> str | None:
    """The version of a Python package by the name of its dist-info folder, next to the launcher's own bin folder."""
    prefix = launcher.resolve().parent.parent
    for pattern in ("lib/python3*/site-packages", "lib/python3*/dist-packages"):
        for folder in prefix.glob(f"{pattern}/{distribution}-*.dist-info"):
            return folder.name.removeprefix(f"{distribution}-").removesuffix(".dist-info")
    return None
