"""What was asked for and could not be measured, since somebody disturbed every run: with the cause, and how often."""

from fleet_controller.results.figures import age, disturbance
from fleet_controller.results.html.content import Report, row_id
from fleet_controller.results.html.markup import Markup, link, scrolling_box, tag
from fleet_controller.results.matrix import Entry

_COLUMNS = ("Host", "Model", "Backend", "Tool", "Tests", "What happened", "When")


def disturbed_cells(report: Report) -> list[list[Entry]]:
    """The rows without a figure, those of one run together."""
    runs: dict[str, list[Entry]] = {}
    for entry in report.entries:
        if entry.result.mean is None:
            runs.setdefault(entry.result.run_id, []).append(entry)
    return list(runs.values())


def disturbed_section(report: Report) -> Markup:
    head = tag("tr", [tag("th", name, scope="col") for name in _COLUMNS])
    rows = [_row(report, cell) for cell in disturbed_cells(report)]
    caption = "Cells whose every run was disturbed; no figure is kept of them"
    table = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", rows), class_="rows")
    return scrolling_box(caption, table)


def _row(report: Report, cell: list[Entry]) -> Markup:
    first = cell[0].result
    when = age(first.finished_unix_ms, report.now_unix_ms)
    tests = ", ".join(entry.result.test for entry in cell)
    return tag(
        "tr",
        tag("th", link(row_id(cell[0].result_id), first.host or "unnamed host"), scope="row"),
        tag("td", " ".join(part for part in (first.model, first.quantization) if part)),
        tag("td", f"{first.backend} {first.backend_version}".strip()),
        tag("td", first.client),
        tag("td", tests),
        tag("td", disturbance(first)),
        tag("td", f"{when} ago" if when else "-"),
        data_host=first.host,
        data_model=first.model.lower(),
        data_backend=first.backend,
        data_source=first.source.value,
    )
