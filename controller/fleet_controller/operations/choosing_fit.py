"""The fitted predictions, kept: a fit takes seconds, and the next command has the same rows most of the time."""

import hashlib
import json
import logging
import os
from functools import cache
from pathlib import Path

from fleet_controller.choosing import least_squares, priors, speed, terms, work
from fleet_controller.choosing.speed import SpeedModel
from fleet_controller.choosing.work import MeasuredSpeed

logger = logging.getLogger(__name__)

SOLVED_FILE = "speed-predictions.json"
# Whoever changes one of these gets another fit from the same rows.
_MODULES = (least_squares, priors, speed, terms, work)
_last: tuple[str, SpeedModel] | None = None


def fitted(rows: tuple[MeasuredSpeed, ...], path: Path) -> SpeedModel:
    """The predictions of these rows: of this process, else as `path` keeps them, else fitted and kept there."""
    global _last  # the newest only: functools.cache would keep every one
    key = _key(rows)
    if _last is None or _last[0] != key:
        _last = (key, _read(rows, path, key) or _fit(rows, path, key))
    return _last[1]


def _key(rows: tuple[MeasuredSpeed, ...]) -> str:
    text = "\n".join(sorted(row.model_dump_json() for row in rows))
    return hashlib.sha256(f"{_code()}{text}".encode()).hexdigest()


@cache
def _code() -> str:
    return hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in _MODULES)).hexdigest()


def _read(rows: tuple[MeasuredSpeed, ...], path: Path, key: str) -> SpeedModel | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return SpeedModel.restored(rows, document["solved"]) if document["key"] == key else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is made anew, since it cannot be read: %s", path, error)
        return None


def _fit(rows: tuple[MeasuredSpeed, ...], path: Path, key: str) -> SpeedModel:
    model = SpeedModel(rows)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps({"key": key, "solved": model.solved()}), encoding="utf-8")
        part.replace(path)
    except OSError as error:  # the next command fits again
        logger.warning("the predictions were not kept: %s", error)
    return model
