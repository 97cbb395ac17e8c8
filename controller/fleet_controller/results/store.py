"""Results in SQLite."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from fleet_controller.results.columns import Result
from fleet_controller.state import StateDatabase


def save_results(database: StateDatabase, results: Iterable[Result]) -> None:
    """Keep the rows of one run: all of them or, where one cannot be written, none."""
    database.tables["results"].insert_all([result.model_dump() for result in results])


def load_results(database: StateDatabase, host_glob: str = "", model: str = "") -> list[Result]:
    """Results, oldest first. Host names are matched as recorded, since a host may have left the inventory."""
    where, values = ("model = ?", [model]) if model else (None, [])
    rows = database.tables["results"].rows_where(where, values, order_by="id")
    found = [Result.model_validate(row) for row in rows]
    globs = [part.strip() for part in host_glob.split(",") if part.strip()]
    return [result for result in found if not globs or any(fnmatchcase(result.host, glob) for glob in globs)]
