"""The version of the installed distribution."""

import functools


@functools.lru_cache(maxsize=1)
def software_version() -> str:
    """The version of llmfleet-agent as installed; "0+unknown" where it runs without being installed."""
    from importlib import metadata

    try:
        return metadata.version("llmfleet-agent")
    except metadata.PackageNotFoundError:
        return "0+unknown"
