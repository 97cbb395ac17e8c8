"""The files of deploy/: inside the installed package, or beside it in a source checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
# The wheel carries deploy/ as fleet_controller/deploy; a checkout has it at its root.
_PLACES = (_PACKAGE / "deploy", _PACKAGE.parent.parent / "deploy")


def deploy_file(name: str) -> Path:
    """The file `name` of deploy/, such as "bootstrap/probe.sh". Raises FileNotFoundError."""
    for place in _PLACES:
        if (place / name).is_file():
            return place / name
    raise FileNotFoundError(f"this installation of fleet lacks deploy/{name}; install it again")


def deploy_text(name: str) -> str:
    return deploy_file(name).read_text(encoding="utf-8")
