"""Errors of an operation as a whole; what goes wrong on one host is a Problem of that host."""

from fleet_controller.domain.base import Problem
from fleet_controller.transport.errors import TransportError


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
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return Problem(code="internal", message=f"fleet failed unexpectedly: {text}", remedy="please report it")
