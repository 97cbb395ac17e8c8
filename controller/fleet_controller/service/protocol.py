"""Which protocol and version this side speaks to the other side of the controller's socket."""

from importlib.metadata import PackageNotFoundError, version


def software_version() -> str:
    """The installed distribution's version; "0" when it runs from files that nobody installed."""
    try:
        return version("llmfleet-controller")
    except PackageNotFoundError:
        return "0"
