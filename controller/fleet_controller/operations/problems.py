"""Errors of an operation as a whole; what goes wrong on one host is a Problem of that host."""

import sqlite3

from fleet_controller.domain.base import Problem
from fleet_controller.transport.errors import TransportError

DOCTOR = "fleet doctor shows the state folder and the space in it; mend that, and repeat"


class OperationError(Exception):
    """The request cannot be carried out at all. `usage`: the user asked for something that does not exist."""

    def __init__(
        self, code: str, message: str, remedy: str = "", usage: bool = False, tail: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.problem = Problem(code=code, message=message, remedy=remedy, tail=tail)
        self.usage = usage


def problem_of(error: Exception) -> Problem:
    """What a user reads about an exception on one host."""
    if isinstance(error, TransportError | OperationError):
        return error.problem
    code, message = getattr(error, "code", None), getattr(error, "message", None)
    if isinstance(code, str) and isinstance(message, str):  # the backends' and the planner's own error trees
        return Problem(code=code, message=message, remedy=str(getattr(error, "remedy", "")))
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return Problem(code="system", message=f"on the controller's machine: {error.strerror}{where}", remedy=DOCTOR)
    if isinstance(error, sqlite3.OperationalError):  # full, locked, read-only: not of the file's contents
        return Problem(code="system", message=f"the controller's database: {error}", remedy=DOCTOR)
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return Problem(code="internal", message=f"fleet failed unexpectedly: {text}", remedy="please report it")
