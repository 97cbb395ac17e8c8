"""The version of the installed distribution."""

import functools
import sys
from pathlib import Path


@functools.lru_cache(maxsize=1)
def software_version() -> str:
    """The version of llmfleet-agent as installed; "0+unknown" where it runs without being installed.

    It is in the name of the metadata folder: importlib.metadata would cost an idle agent a megabyte.
    """
    for entry in sys.path:
        for folder in Path(entry or ".").glob("llmfleet_agent-*.dist-info"):
            return folder.name.removeprefix("llmfleet_agent-").removesuffix(".dist-info")
    return "0+unknown"
