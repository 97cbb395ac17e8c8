"""The fitted predictions, kept: a fit takes seconds, and the next command has the same rows most of the time."""

import hashlib
import json
import logging
import os
from functools import cache
from pathlib import Path

from fleet_controller.choosing import least_squares, priors, speed, terms, work
from fleet_controller.choosing.speed import SpeedModel
from fleet_controller.choosing.work import MeasuredSpeed, Phase

logger = logging.getLogger(__name__)

SOLVED_FILE = "speed-predictions.json"
# Whoever changes one of these gets another fit from the same rows.
_MODULES = (least_squares, priors, speed, terms, work)
_last: tuple[str, SpeedModel] | None = None


def fitted(rows: tuple[MeasuredSpeed, ...], path: Path) -> SpeedModel:
    """The predictions of these rows: of this process, else as `path` keeps them, else fitted when asked and kept."""
    global _last  # the newest only: functools.cache would keep every one
    key = _key(rows)
    if _last is None or _last[0] != key:
        kept = {Phase(name): text for name, text in _read(path, key).items()}
        _last = (key, SpeedModel(rows, kept, lambda phase, solved: _keep(path, key, phase, solved)))
    return _last[1]


def _key(rows: tuple[MeasuredSpeed, ...]) -> str:
    text = "\n".join(sorted(row.model_dump_json() for row in rows))
    return hashlib.sha256(f"{_code()}{text}".encode()).hexdigest()


@cache
def _code() -> str:
    return hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in _MODULES)).hexdigest()


def _read(path: Path, key: str) -> dict[str, str]:
    """Phase -> what its fit came to; none where other rows were fitted, or the file is damaged."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        solved = document["solved"] if document["key"] == key else {}
        return {phase.value: str(solved[phase.value]) for phase in Phase if phase.value in solved}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is made anew, since it cannot be read: %s", path, error)
        return {}


def _keep(path: Path, key: str, phase: Phase, solved: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        document = {"key": key, "solved": _read(path, key) | {phase.value: solved}}
        part.write_text(json.dumps(document), encoding="utf-8")
        part.replace(path)
    except OSError as error:  # the next command fits again
        logger.warning("the predictions were not kept: %s", error)
