"""Backends that fleet installs in a version of its own choice when nobody asks for another one."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Pins(Protocol):
    """The trait of a backend with a pin, in the form in which an install of it names its version."""

    pinned_version: str


def pinned_version(backend: object) -> str:
    """The pin of any backend; "" where it has none."""
    return backend.pinned_version if isinstance(backend, Pins) else ""
