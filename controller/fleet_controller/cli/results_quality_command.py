"""What `fleet results quality` does: scores of quality, all or one in full."""

import json
import sys
from typing import Any

from fleet_controller.cli.client import call, connected_controller
from fleet_controller.cli.failures import CommandFailure
from fleet_controller.cli.output import print_json, print_table
from fleet_controller.cli.quality_view import COLUMNS, print_rows, score_cells
from fleet_controller.evaluating.report import comparisons
from fleet_controller.results.quality import QualityRow
from fleet_proto.v1 import controller_pb2


def run_quality(model: str, metric: str, row_id: int, as_json: bool) -> None:
    """Print the rows, or the one of that id with its subjects and answers; none at all is no error."""
    found = call(_fetch(controller_pb2.ListQualityRequest(model=model, metric=metric)))
    others = [row for _, row in found]
    if row_id:
        found = [(number, row) for number, row in found if number == row_id]
        if not found:
            raise CommandFailure(f"there is no score {row_id}", "fleet results quality lists them")
    documents = [_document(number, row, others, whole=bool(row_id)) for number, row in found]
    if as_json:
        print_json({"quality": documents})
    elif not documents:
        print("no scores; next: fleet eval MODEL --hosts PATTERN", file=sys.stderr)
    elif row_id:
        print_rows(documents)
    else:
        print_table(("ID", *COLUMNS), [(str(one["id"]), *score_cells(one)) for one in documents])


def _document(number: int, row: QualityRow, others: list[QualityRow], *, whole: bool) -> dict[str, Any]:
    values = row.model_dump(mode="json", exclude=None if whole else {"raw"})
    return {
        "id": number,
        "fingerprint": row.fingerprint,
        "title": row.scale_text,
        "refused": row.raw.get("refused", 0),
        "no_letter": row.raw.get("no_letter", 0),
        "comparisons": comparisons(row, others),
        **values,
    }


async def _fetch(request: controller_pb2.ListQualityRequest) -> list[tuple[int, QualityRow]]:
    async with connected_controller() as controller:
        reply = await controller.ListQuality(request)
    return [(int(row.id), QualityRow.model_validate(json.loads(row.json))) for row in reply.rows]
