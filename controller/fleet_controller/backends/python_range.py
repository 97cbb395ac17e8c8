"""The Pythons that a version of a backend runs on, and which one its environment is made with."""

import re
from collections.abc import Sequence

from fleet_controller.domain.base import Frozen


class PythonRange(Frozen):
    """Minor versions of Python 3, both ends included."""

    lowest: tuple[int, int]
    highest: tuple[int, int]

    def request(self, host_python: str) -> str:
        """What `uv venv --python` is asked for: "" = the agent's own interpreter will do (or is not known).

        As in the lab notes: "if system python too old: uv venv --python 3.10".
        """
        found = re.match(r"(\d+)\.(\d+)", host_python)
        if found is None:
            return ""
        own = (int(found[1]), int(found[2]))
        if own < self.lowest:
            return _text(self.lowest)
        return _text(self.highest) if own > self.highest else ""


def _text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def python_range(ranges: Sequence[tuple[tuple[int, ...], PythonRange]], version: str) -> PythonRange:
    """The range of a version in a table that is sorted by version; the newest for what is no release."""
    found = re.match(r"(\d+(?:\.\d+)+)", version)
    if found is None:
        return ranges[-1][1]
    release = tuple(int(part) for part in found[1].split("."))
    return next((allowed for since, allowed in reversed(ranges) if release >= since), ranges[0][1])
