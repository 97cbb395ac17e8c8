"""Results as files: CSV (a row each), JSON (with runs and device samples), Markdown (as the tools print)."""

import csv
import io
import json
from collections.abc import Iterable, Sequence

from fleet_controller.results.columns import DeviceSample, Result, Run
from fleet_controller.results.importing.own import DOCUMENT_KEY, DOCUMENT_VERSION
from fleet_controller.results.markdown import markdown_of
from fleet_controller.results.rows import plain_row


def csv_text(results: Iterable[Result]) -> str:
    """All columns; lists and objects are JSON. Raw output and device samples are in the JSON export only."""
    target = io.StringIO()
    writer = csv.DictWriter(target, list(Result.model_fields), lineterminator="\n")
    writer.writeheader()
    for result in results:
        writer.writerow(plain_row(result))
    return target.getvalue()


def json_text(results: Sequence[Result], runs: Sequence[Run], device_samples: Sequence[DeviceSample]) -> str:
    document = {
        DOCUMENT_KEY: DOCUMENT_VERSION,
        "results": [result.model_dump(mode="json") for result in results],
        "runs": [run.model_dump(mode="json") for run in runs],
        "device_samples": [sample.model_dump(mode="json") for sample in device_samples],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def markdown_text(results: Sequence[Result], runs: Sequence[Run]) -> str:
    return markdown_of(results, runs)
