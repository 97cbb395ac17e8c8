"""The report as one file: its parts in order, the style and the script inside, and a policy that forbids all else."""

import base64
import hashlib
from datetime import UTC, datetime
from importlib.resources import files

from fleet_controller.results.columns import Source
from fleet_controller.results.comparability import Level
from fleet_controller.results.html.charts import charts
from fleet_controller.results.html.content import METRIC_NAMES, Report
from fleet_controller.results.html.disturbed import disturbed_cells, disturbed_section
from fleet_controller.results.html.filters import filter_form
from fleet_controller.results.html.heat_map import STEPS, heat_maps, metric_anchor
from fleet_controller.results.html.hosts import host_sections
from fleet_controller.results.html.markup import Content, Markup, link, tag
from fleet_controller.results.html.statements import conclusions_section

TITLE = "fleet matrix"


def render(report: Report) -> str:
    """The whole document. Ages are those at the time of the report."""
    style, script = _asset("report.css"), _asset("report.js")
    made = datetime.fromtimestamp(report.now_unix_ms / 1000, UTC)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{TITLE}, {made:%Y-%m-%d}"),
        tag("link", rel="icon", href="data:,"),
        tag("style", Markup(style)),
    )
    body = tag(
        "body",
        link("main", "Skip to the content", class_="skip"),
        _header(report, made),
        tag("main", _main(report), id="main"),
        tag("script", Markup(script)),
        data_colours="model",
    )
    return f'<!doctype html>\n<html lang="en">{head}{body}</html>\n'


def _asset(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """No address is ever asked for, and no other script runs, whatever a name in the data says."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _header(report: Report, made: datetime) -> Markup:
    count = f"{len(report.entries):,} results of {len(report.anchors)} hosts"
    lines: list[Content] = [tag("p", count, ", ", tag("time", f"{made:%Y-%m-%d %H:%M} UTC", datetime=made.isoformat()))]
    if report.question.restrictions:
        lines.append(tag("p", "Only: ", ", ".join(report.question.restrictions)))
    if report.left_out:
        text = f"{report.left_out:,} more results are left out, the oldest that the matrix does not show: "
        lines.append(
            tag(
                "p",
                text,
                tag("code", "fleet results list"),
                " has them, and fewer models or hosts fit.",
                class_="warning",
            )
        )
    return tag("header", tag("h1", TITLE), lines, _contents(report), filter_form(report))


def _contents(report: Report) -> Markup:
    metrics = dict.fromkeys(matrix.metric for matrix in report.matrices)
    entries = [
        *(link(metric_anchor(metric), METRIC_NAMES[metric]) for metric in metrics),
        link("charts", "Speed against depth"),
        link("conclusions", "Conclusions"),
        *([link("contaminated", "Contaminated")] if disturbed_cells(report) else []),
        *(link(anchor, host or "unnamed host") for host, anchor in report.anchors.items()),
    ]
    return tag("nav", tag("ul", [tag("li", entry) for entry in entries]), aria_label="Contents")


def _main(report: Report) -> list[Markup]:
    if not report.entries:
        hint = [tag("code", "fleet bench MODEL --hosts PATTERN"), " measures some."]
        return [tag("p", "No results pass. ", hint)]
    return [
        tag("section", tag("h2", "Matrix"), _legend(report), heat_maps(report), id="matrix"),
        tag("section", tag("h2", "Speed against depth"), charts(report), id="charts"),
        tag("section", tag("h2", "Conclusions"), conclusions_section(report), id="conclusions"),
        *(
            [tag("section", tag("h2", "Contaminated"), disturbed_section(report), id="contaminated")]
            if disturbed_cells(report)
            else []
        ),
        tag("section", tag("h2", "Hosts"), host_sections(report), id="hosts"),
    ]


def _legend(report: Report) -> Markup:
    """What colours and marks mean; marks that do not occur are left out."""
    cells = [cell for matrix in report.matrices for cell in matrix.cells.values()]
    steps = [tag("span", f"{step * 100 // STEPS} %", class_=f"m{step} w{step}") for step in range(0, STEPS + 1, 2)]
    marks = (
        (["best"], "the best of its model on this machine", any(cell.best for cell in cells)),
        (["tie"], "as good as the best: the error bars overlap", any(cell.tie for cell in cells)),
        (
            ["≈"],
            "of another client, token count or near depth: good for choosing, no measurement of this test",
            any(cell.level is Level.NEAR for cell in cells),
        ),
        (
            ["reference"],
            "data that ships with fleet, measured by others",
            any(cell.result.source is Source.REFERENCE for cell in cells),
        ),
        (["imported"], "read from files of tools", any(cell.result.source is Source.IMPORTED for cell in cells)),
        (["%"], "share of the best figure of the model, over all machines of the table", bool(cells)),
    )
    meant = [tag("div", tag("dt", name), tag("dd", text)) for name, text, occurs in marks if occurs]
    key = tag("p", "Speed, as a share of the best: ", steps, class_="key")
    return tag("div", key, tag("dl", meant, class_="marks"), class_="legend-box")
