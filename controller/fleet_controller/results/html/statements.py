"""What the rows say, each sentence with the rows that it rests on."""

from collections.abc import Sequence

from fleet_controller.results.conclusions import NO_ROWS, Statement
from fleet_controller.results.html.content import Report, row_id
from fleet_controller.results.html.markup import Markup, link, tag

# The rest of a topic folds away.
SHOWN = 8
TITLES = {
    "mixture of experts against dense": "Mixtures of experts against dense models",
    "decode against depth": "What is left of the decode speed at depth",
    "newer builds": "What newer builds gain",
}


def conclusions_section(report: Report) -> Markup:
    """A part for each topic; where no rows say anything, it says so."""
    topics: dict[str, list[Statement]] = {}
    for statement in report.statements:
        topics.setdefault(statement.topic, []).append(statement)
    return Markup("".join(_topic(topic, found) for topic, found in topics.items()))


def _topic(topic: str, found: Sequence[Statement]) -> Markup:
    title = tag("h3", TITLES.get(topic, topic))
    if all(statement.text == NO_ROWS for statement in found):
        return tag("section", title, tag("p", NO_ROWS, class_="no-rows"))
    rest = found[SHOWN:]
    folded = tag("details", tag("summary", f"{len(rest)} more"), _list(rest)) if rest else None
    return tag("section", title, _list(found[:SHOWN]), folded)


def _list(statements: Sequence[Statement]) -> Markup:
    return tag(
        "ul", [tag("li", statement.text, " ", _rows(statement)) for statement in statements], class_="statements"
    )


def _rows(statement: Statement) -> Markup:
    links = [link(row_id(result_id), result_id) for result_id in statement.result_ids]
    separated = [piece for one in links for piece in (", ", one)][1:]
    return tag("small", "rows ", separated)
