"""What `fleet results export` wrote as JSON or CSV: every column comes back as it was, also where it came from."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from fleet_controller.results.columns import DeviceSample, Result, Run
from fleet_controller.results.importing.model import Reading

DOCUMENT_KEY = "fleet_results"
DOCUMENT_VERSION = 1
Kept = TypeVar("Kept", Result, Run, DeviceSample)
_TEXT_JSON = ("samples", "tool_fields")


def is_own_row(row: Mapping[str, Any]) -> bool:
    return {"run_id", "test_kind", "source", "mean"} <= set(row)


def read_own_document(reading: Reading, document: Mapping[str, Any]) -> None:
    if document.get(DOCUMENT_KEY) != DOCUMENT_VERSION:
        reading.problem(0, f"it is an export of another version ({document.get(DOCUMENT_KEY)})", "use the newer fleet")
        return
    reading.results += _entries(reading, document, "results", Result)
    reading.runs += _entries(reading, document, "runs", Run)
    reading.device_samples += _entries(reading, document, "device_samples", DeviceSample)


def _entries(reading: Reading, document: Mapping[str, Any], name: str, model: type[Kept]) -> list[Kept]:
    found: list[Kept] = []
    for index, entry in enumerate(document.get(name) or (), start=1):
        try:
            found.append(model.model_validate(entry))
        except ValidationError as error:
            reading.problem(0, f"entry {index} of {name}: {_first(error)}", "export again, or repair that entry")
    return found


def read_own_rows(reading: Reading, rows: Iterable[tuple[int, Mapping[str, str]]]) -> None:
    for line, row in rows:
        try:
            reading.results.append(Result.model_validate(_values(row)))
        except (ValidationError, ValueError) as error:
            text = _first(error) if isinstance(error, ValidationError) else str(error)
            reading.problem(line, text, "repair or remove that line, then repeat")


def _values(row: Mapping[str, str]) -> dict[str, Any]:
    """An empty cell is what the column says when nothing is known."""
    known = {name: value for name, value in row.items() if name in Result.model_fields and value not in ("", None)}
    return {name: json.loads(value) if name in _TEXT_JSON else value for name, value in known.items()}


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    return f"'{'.'.join(map(str, problem['loc']))}': {problem['msg']}"
