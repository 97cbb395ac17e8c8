"""The filters: a form that shows itself only where scripts run, since it needs one."""

from collections.abc import Iterable

from fleet_controller.results.html.content import Report
from fleet_controller.results.html.markup import Markup, tag


def filter_form(report: Report) -> Markup:
    """A choice for each facet; report.js hides what does not match. The depth that was asked for is chosen at first."""
    results = [entry.result for entry in report.entries]
    depths = sorted({result.depth for result in results})
    asked = report.question.depth if report.question.depth in depths else None
    choices = [
        _choice("model", "Model", sorted({result.model.lower() for result in results})),
        _choice("backend", "Backend", sorted({result.backend for result in results})),
        _choice("host", "Host", sorted({result.host for result in results})),
        _choice("source", "Source", sorted({result.source.value for result in results})),
        _choice("depth", "Depth", [str(depth) for depth in depths], None if asked is None else str(asked)),
    ]
    colours = tag(
        "label",
        "Colour by share of",
        tag(
            "select",
            tag("option", "the model's best", value="model"),
            tag("option", "the row's best", value="row"),
            id="colours",
        ),
    )
    buttons = [
        tag("button", "Show all", type="button", id="show-all"),
        tag("button", "Open all details", type="button", id="open-all", aria_pressed="false"),
    ]
    count = tag("p", role="status", id="count")
    return tag("form", choices, colours, buttons, count, id="filters", hidden=True, aria_label="Filters")


def _choice(name: str, title: str, values: Iterable[str], chosen: str | None = None) -> Markup:
    options = [tag("option", value or "unknown", value=f"={value}", selected=value == chosen) for value in values]
    everything = tag("option", "all", value="")
    return tag("label", title, tag("select", everything, options, name=name, id=f"filter-{name}"))
