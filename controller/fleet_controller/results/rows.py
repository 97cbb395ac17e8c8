"""Between models and rows of SQLite. Lists and objects are JSON text there, so that any tool can read them."""

import json
from collections.abc import Mapping
from typing import Any

from fleet_controller.domain.base import Frozen
from fleet_controller.results.columns import DeviceSample, Result, Run
from fleet_controller.results.statistics import interval_of

_JSON_COLUMNS = frozenset({"samples", "tool_fields", "details"})


def row_of(result: Result) -> dict[str, Any]:
    """A row of `results`, with its keys and, where they follow from the rest, the limits of its confidence interval."""
    row = plain_row(result)
    interval = interval_of(result)
    if interval is not None and result.confidence_low is None:
        row["confidence_low"], row["confidence_high"] = interval
    return {"result_key": result.result_key, "fingerprint_id": result.fingerprint_id, **row}


def plain_row(value: Frozen) -> dict[str, Any]:
    """The model's fields as SQLite keeps them."""
    fields = value.model_dump(mode="json")
    return {
        name: json.dumps(item, ensure_ascii=False, separators=(",", ":")) if name in _JSON_COLUMNS else item
        for name, item in fields.items()
    }


def result_of(row: Mapping[str, Any]) -> Result:
    return Result.model_validate(_parsed(row))


def run_of(row: Mapping[str, Any]) -> Run:
    return Run.model_validate(_parsed(row))


def device_sample_of(row: Mapping[str, Any]) -> DeviceSample:
    return DeviceSample.model_validate(_parsed(row))


def _parsed(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: json.loads(item) if name in _JSON_COLUMNS and item else item for name, item in dict(row).items()}
