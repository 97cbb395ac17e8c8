"""Results as messages and back. Fields have the names of the columns; objects travel as JSON.

Messages are made field by field: a listing may hold thousands of rows, and the general way of wire.py takes 20 times
as long.
"""

import json
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from fleet_controller.domain.base import Frozen
from fleet_controller.operations.results import Listing, Piece
from fleet_controller.results.columns import DeviceSample, Result, Run
from fleet_controller.results.store import Filter
from fleet_proto.v1 import controller_pb2

if TYPE_CHECKING:
    from fleet_controller.results.importing.model import FileContext

_JSON_FIELDS = {"tool_fields": "tool_fields_json", "details": "details_json"}
_COLUMN_OF = {field: column for column, field in _JSON_FIELDS.items()}


def row_message(result_id: int, result: Result) -> controller_pb2.ResultRow:
    return controller_pb2.ResultRow(id=result_id, fingerprint_id=result.fingerprint_id, **_fields(result))


def entry_of(row: controller_pb2.ResultRow) -> tuple[int, Result]:
    """The id and the row."""
    return row.id, Result.model_validate(_columns(row))


def run_of(message: controller_pb2.BenchRun) -> Run:
    return Run.model_validate(_columns(message))


def device_sample_of(message: controller_pb2.BenchDeviceSample) -> DeviceSample:
    return DeviceSample.model_validate(_columns(message))


def piece_message(piece: Piece) -> controller_pb2.ListResultsReply:
    return controller_pb2.ListResultsReply(
        rows=[row_message(result_id, result) for result_id, result in piece.rows],
        runs=[controller_pb2.BenchRun(**_fields(run)) for run in piece.runs],
        device_samples=[controller_pb2.BenchDeviceSample(**_fields(sample)) for sample in piece.device_samples],
        left_out=piece.left_out,
    )


def details_message(
    result_id: int, details: tuple[Result, Run | None, list[DeviceSample]]
) -> controller_pb2.ResultDetails:
    result, run, samples = details
    return controller_pb2.ResultDetails(
        row=row_message(result_id, result),
        run=controller_pb2.BenchRun(**_fields(run)) if run is not None else None,
        device_samples=[controller_pb2.BenchDeviceSample(**_fields(sample)) for sample in samples],
    )


def listing_of(request: controller_pb2.ListResultsRequest) -> Listing:
    wanted = Filter(
        host_pattern=request.pattern,
        models=tuple(request.models),
        backends=tuple(request.backends),
        quantizations=tuple(request.quantizations),
        suites=tuple(request.suites),
        sources=tuple(request.sources),
        clients=tuple(request.clients),
        test_kinds=tuple(request.test_kinds),
        least_depth=request.least_depth if request.HasField("least_depth") else None,
        most_depth=request.most_depth if request.HasField("most_depth") else None,
        concurrency=request.concurrency if request.HasField("concurrency") else None,
        since_unix_ms=request.since_unix_ms,
    )
    return Listing(wanted, request.newest, request.one_per_fingerprint, request.with_runs)


def files_of(request: controller_pb2.ImportResultsRequest) -> list[tuple["FileContext", bytes]]:
    from fleet_controller.results.importing.model import FileContext

    said = {
        "host": request.host,
        "chip": request.chip,
        "model": request.model,
        "quantization": request.quantization,
        "backend": request.backend,
        "backend_version": request.backend_version,
        "client_version": request.client_version,
    }
    return [(FileContext(name=file.name, **said), file.content) for file in request.files]


def _fields(value: Frozen) -> dict[str, Any]:
    return {
        _JSON_FIELDS.get(name, name): json.dumps(item, ensure_ascii=False) if name in _JSON_FIELDS else item
        for name, item in value.model_dump(mode="json", exclude_none=True).items()
    }


def _columns(message: Message) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.name in _COLUMN_OF:
            columns[_COLUMN_OF[field.name]] = json.loads(value) if value else {}
        elif field.is_repeated:
            columns[field.name] = tuple(value)
        elif not field.has_presence or message.HasField(field.name):
            columns[field.name] = value
    return columns
