"""The host's tools of the allowlist, with their versions."""

import re
import subprocess
import sys
from pathlib import Path

from fleet_agent.configuration import ALLOWED_TOOLS, find_host_tool
from fleet_agent.probes.model import ProbeContext, ToolFacts
from fleet_agent.probes.reading import version_text

# `lms` starts LM Studio's daemon and `brew --version` takes a second: their versions are not asked.
_VERSION_ASKED = dict.fromkeys(("git", "cmake", "ninja", "make", "uv", "nvcc", "python3"), "--version")


def read(context: ProbeContext) -> tuple[ToolFacts, ...]:
    developer_tools = sys.platform != "darwin" or _mac_developer_tools()
    found = []
    for name in ALLOWED_TOOLS:
        path = find_host_tool(name, context.configuration)
        if path is None or (not developer_tools and path.parent == Path("/usr/bin")):
            continue
        text = version_text(path, _VERSION_ASKED[name]) if name in _VERSION_ASKED else None
        found.append(ToolFacts(name, str(path), parse_version(name, text)))
    return tuple(found)


def _mac_developer_tools() -> bool:
    """Without them /usr/bin/git and its like are stand-ins that open an installer's window when run."""
    try:
        return (
            subprocess.run(["/usr/bin/xcode-select", "-p"], capture_output=True, timeout=3, check=False).returncode == 0
        )
    except (OSError, subprocess.TimeoutExpired):
        return False


def parse_version(name: str, text: str | None) -> str | None:
    """The first version number in what the tool printed; nvcc's is behind "release"."""
    pattern = r"release (\d+(?:\.\d+)+)" if name == "nvcc" else r"(\d+(?:\.\d+)+)"
    found = re.search(pattern, text or "")
    return found.group(1) if found else None
