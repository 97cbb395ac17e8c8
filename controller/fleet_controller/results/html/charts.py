"""Speed against depth, as SVG that is drawn here: no script takes part."""

from collections.abc import Sequence

from fleet_controller.results.columns import Metric
from fleet_controller.results.figures import figure
from fleet_controller.results.html.content import METRIC_NAMES, Report, row_id
from fleet_controller.results.html.markup import Markup, link, tag
from fleet_controller.results.html.scale import Scale, round_ticks, tick_text, tokens_text
from fleet_controller.results.html.series import CHART_METRICS, Line, ModelCharts, Point, Way, charts_of

WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 42, 14, 14, 38
INSET = 9  # keeps markers at depth 0 off the labels
LEAST_BETWEEN_LABELS = 26
CAP = 3  # half the width of an error bar's ends
# Each line has a marker of its own, for whoever sees no colours; those after FILLED are hollow.
MARKERS = (
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
    "M-3.2 -3.2h6.4v6.4h-6.4z",
    "M0 -4.2L4 3H-4z",
    "M0 -4.6L4.2 0L0 4.6L-4.2 0z",
    "M0 4.2L4 -3H-4z",
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
    "M-3.2 -3.2h6.4v6.4h-6.4z",
    "M0 -4.6L4.2 0L0 4.6L-4.2 0z",
)
FILLED = 5


def charts(report: Report) -> Markup:
    """A section for each model."""
    shown = [entry for entry in report.entries if entry.result.concurrency == report.question.concurrency]
    return Markup("".join(_section(number, found) for number, found in enumerate(charts_of(shown))))


def _section(number: int, found: ModelCharts) -> Markup:
    if not found.figures:
        body: list[Markup] = [tag("p", "Measured at one depth only: the heat maps say it all.")]
    else:
        body = [
            _figure(found.model, lines, f"chart-{number}-{part}", (part, len(found.figures)))
            for part, lines in enumerate(found.figures, start=1)
        ]
    return tag("section", tag("h3", found.model), body, data_model=found.model, data_group=bool(found.figures))


def _figure(model: str, lines: Sequence[Line], anchor: str, part: tuple[int, int]) -> Markup:
    of = f" ({part[0]} of {part[1]})" if part[1] > 1 else ""
    caption = (
        f"{model}{of}: tokens/s against tokens in the context; bars are 95 % intervals of the mean, else deviations"
    )
    drawn = [
        _chart(model, lines, metric, anchor) for metric in CHART_METRICS if any(line.points[metric] for line in lines)
    ]
    keys = [_key(number, line.way) for number, line in enumerate(lines)]
    return tag(
        "figure",
        tag("div", drawn, class_="pair"),
        tag("ul", keys, class_="legend"),
        tag("figcaption", caption),
        class_="block",
        id=anchor,
        data_group=True,
    )


def _key(number: int, way: Way) -> Markup:
    swatch = tag(
        "svg",
        tag("path", d="M0 8H30", class_="line"),
        _marker(number, 15, 8),
        viewBox="0 0 30 16",
        class_=f"swatch s{number}",
        aria_hidden="true",
    )
    return tag("li", swatch, way.label, **_facets(way))


def _facets(way: Way) -> dict[str, str]:
    return {"data_host": way.host, "data_backend": way.backend, "data_source": way.source}


def _chart(model: str, lines: Sequence[Line], metric: Metric, anchor: str) -> Markup:
    points = [point for line in lines for point in line.points[metric]]
    depths = sorted({point.depth for point in points})
    ticks = round_ticks(max(point.high for point in points))
    across = Scale(0, max(depths) or 1, LEFT + INSET, WIDTH - RIGHT)
    up = Scale(0, ticks[-1], HEIGHT - BOTTOM, TOP)
    title_id = f"{anchor}-{metric.value}"
    title = f"{METRIC_NAMES[metric]}, tokens/s"
    return tag(
        "div",
        tag("h4", title, id=title_id),
        tag(
            "svg",
            _axes(ticks, depths, across, up),
            [_line(number, line, metric, across, up) for number, line in enumerate(lines)],
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            role="img",
            aria_label=f"{model}: {title} against depth; the figures are in the sections of the hosts",
            class_="chart",
        ),
    )


def _axes(ticks: Sequence[float], depths: Sequence[int], across: Scale, up: Scale) -> list[Markup]:
    drawn: list[Markup] = []
    for tick in ticks:
        height = up.place(tick)
        drawn.append(tag("path", d=f"M{LEFT} {height}H{WIDTH - RIGHT}", class_="axis" if tick == 0 else "grid"))
        drawn.append(tag("text", tick_text(tick), x=LEFT - 5, y=height + 3.5, text_anchor="end"))
    last = float("-inf")
    for depth in depths:
        place = across.place(depth)
        drawn.append(tag("path", d=f"M{place} {HEIGHT - BOTTOM}v4", class_="axis"))
        if place - last >= LEAST_BETWEEN_LABELS:
            drawn.append(tag("text", tokens_text(depth), x=place, y=HEIGHT - BOTTOM + 15, text_anchor="middle"))
            last = place
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawn.append(tag("text", "depth, tokens", x=middle, y=HEIGHT - 6, text_anchor="middle"))
    return drawn


def _line(number: int, line: Line, metric: Metric, across: Scale, up: Scale) -> Markup:
    points = line.points[metric]
    path = " ".join(f"{across.place(point.depth)} {up.place(point.mean)}" for point in points)
    drawn = [tag("path", d=f"M{path}", class_="line")] if len(points) > 1 else []
    drawn += [_point(number, point, across, up) for point in points]
    return tag("g", drawn, class_=f"s{number}", **_facets(line.way)) if points else Markup("")


def _point(number: int, point: Point, across: Scale, up: Scale) -> Markup:
    x, y = across.place(point.depth), up.place(point.mean)
    low, high = up.place(max(point.low, 0.0)), up.place(point.high)
    bar = f"M{x} {low}V{high}M{x - CAP} {low}h{2 * CAP}M{x - CAP} {high}h{2 * CAP}"
    result = point.entry.result
    title = f"{result.host}: {result.test} {figure(result)} {result.unit} ({point.low:.2f} to {point.high:.2f})"
    drawn = [tag("title", title), tag("path", d=bar, class_="bar"), _marker(number, x, y)]
    return link(row_id(point.entry.result_id), drawn, tabindex=-1)


def _marker(number: int, x: float, y: float) -> Markup:
    filled = "mark" if number < FILLED else "mark hollow"
    return tag("path", d=MARKERS[number], transform=f"translate({x} {y})", class_=filled)
