"""The heat maps: one table for each metric and depth, split where there are many machines."""

from collections.abc import Hashable, Mapping, Sequence

from fleet_controller.results.columns import Metric, Source, lower_is_better
from fleet_controller.results.comparability import Level
from fleet_controller.results.figures import age, figure
from fleet_controller.results.html.content import METRIC_NAMES, Report, row_id
from fleet_controller.results.html.markup import Markup, link, scrolling_box, tag
from fleet_controller.results.matrix import Cell, Matrix, RowKey

# What fits across a page of A4.
COLUMNS_MOST = 6
STEPS = 10
NEAR_TITLE = "of another client, token count or near depth: good for choosing, no measurement of this test"


def heat_maps(report: Report) -> Markup:
    """A section for each metric, in it the depths."""
    metrics = dict.fromkeys(matrix.metric for matrix in report.matrices)
    return Markup("".join(_section(report, metric) for metric in metrics))


def metric_anchor(metric: Metric) -> str:
    return f"heat-{metric.value}"


def _section(report: Report, metric: Metric) -> Markup:
    mine = [matrix for matrix in report.matrices if matrix.metric is metric]
    better = "less" if lower_is_better(metric) else "more"
    unit = next(iter(mine[0].cells.values())).result.unit
    return tag(
        "section",
        tag("h3", f"{METRIC_NAMES[metric]} ", tag("small", f"{unit}, {better} is better")),
        tag("div", [_tables(report, matrix) for matrix in mine], class_="tables"),
        id=metric_anchor(metric),
        data_group=True,
    )


def _tables(report: Report, matrix: Matrix) -> list[Markup]:
    best = _best_figures(matrix)
    starts = range(0, len(matrix.columns), COLUMNS_MOST)
    return [_table(report, matrix, matrix.columns[start : start + COLUMNS_MOST], best) for start in starts]


def _table(report: Report, matrix: Matrix, columns: Sequence[str], best: Mapping[Hashable, float]) -> Markup:
    caption = f"{METRIC_NAMES[matrix.metric]} at depth {matrix.depth:,}"
    if len(columns) < len(matrix.columns):
        caption += f": {columns[0]} to {columns[-1]}" if len(columns) > 1 else f": {columns[0]}"
    models = dict.fromkeys(row[0] for row in matrix.rows)
    head = tag(
        "tr",
        tag("th", "Quantization, backend", scope="col"),
        [tag("th", _column_name(report, name), scope="col", data_column=number) for number, name in enumerate(columns)],
    )
    bodies = [_model_rows(report, matrix, model, columns, best) for model in models]
    table = tag("table", tag("caption", caption), tag("thead", head), bodies, class_="heat")
    return tag("div", scrolling_box(caption, table), class_="block", data_group=True, data_depth=matrix.depth)


def _column_name(report: Report, name: str) -> Markup:
    anchor = report.anchors.get(name) if report.question.by == "host" else None
    return link(anchor, name) if anchor else tag("span", name)


def _model_rows(
    report: Report, matrix: Matrix, model: str, columns: Sequence[str], best: Mapping[Hashable, float]
) -> Markup:
    rows = [row for row in matrix.rows if row[0] == model and any((row, column) in matrix.cells for column in columns)]
    if not rows:
        return Markup("")
    test = matrix.tests.get(model)
    name = tag("span", model, tag("small", f" {test}") if test else None, class_="model")
    heading = tag("tr", tag("th", name, scope="rowgroup", colspan=len(columns) + 1))
    body = [_row(report, matrix, row, columns, best) for row in rows]
    return tag("tbody", heading, body, data_group=True, data_model=model)


def _row(report: Report, matrix: Matrix, row: RowKey, columns: Sequence[str], best: Mapping[Hashable, float]) -> Markup:
    name = [row[1] or "-", " ", tag("small", row[2] or "-")]
    found = [matrix.cells.get((row, column)) for column in columns]
    cells = [
        _cell(report, cell, number, (_share(cell, best[row[0]]), _share(cell, best[row])))
        for number, cell in enumerate(found)
    ]
    return tag("tr", tag("th", name, scope="row"), cells, data_group=True, data_backend=row[2])


def _cell(report: Report, cell: Cell | None, column: int, shares: tuple[float, float]) -> Markup:
    if cell is None:
        return tag("td", "–", class_="none", data_column=column)
    result = cell.result
    mean, _, deviation = figure(result).partition(" ± ")
    near = tag("abbr", "≈", title=NEAR_TITLE) if cell.level is Level.NEAR else None
    shown = [near, " " if near else None, tag("b", mean), f" ± {deviation}" if deviation else None]
    words = [tag("b", "best") if cell.best else tag("b", "tie") if cell.tie else None, f"{shares[0]:.0%}"]
    about = (
        "" if result.source is Source.MEASURED else result.source.value,
        age(result.finished_unix_ms, report.now_unix_ms),
        result.backend_version,
    )
    parts = [part for part in (*words, *about) if part]
    separated = [piece for part in parts for piece in (" · ", part)][1:]
    return tag(
        "td",
        link(row_id(cell.entry.result_id), shown),
        tag("small", separated),
        class_=_classes(cell, shares),
        data_column=column,
        data_host=result.host,
        data_source=result.source.value,
    )


def _classes(cell: Cell, shares: tuple[float, float]) -> str:
    """Two steps of colour, of which the page shows one, and the marks."""
    marks = (("best", cell.best), ("tie", cell.tie), ("near", cell.level is Level.NEAR))
    steps = f"cell m{round(shares[0] * STEPS)} w{round(shares[1] * STEPS)}"
    return " ".join([steps, *(name for name, is_so in marks if is_so)])


def _best_figures(matrix: Matrix) -> dict[Hashable, float]:
    """Of each model (its name) and of each row (its key), over all machines."""
    choose = min if lower_is_better(matrix.metric) else max
    best: dict[Hashable, float] = {}
    for (row, _), cell in matrix.cells.items():
        mean = cell.result.mean
        if mean is not None:
            for key in (row[0], row):
                best[key] = choose(best.get(key, mean), mean)
    return best


def _share(cell: Cell | None, best: float) -> float:
    """From 0 to 1: the speed as a share of the best one."""
    if cell is None or not cell.result.mean or not best:
        return 0.0
    share = best / cell.result.mean if lower_is_better(cell.result.test_kind) else cell.result.mean / best
    return min(max(share, 0.0), 1.0)
