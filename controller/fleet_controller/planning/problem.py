"""Why a plan for a host cannot be made."""

from fleet_controller.domain.base import Problem


class PlanProblem(Exception):
    """`refused`: policy says no (exit code 3); `usage`: the request itself is wrong (exit code 2)."""

    def __init__(
        self, code: str, message: str, remedy: str = "", *, refused: bool = False, usage: bool = False
    ) -> None:
        super().__init__(message)
        self.problem = Problem(code=code, message=message, remedy=remedy)
        self.refused = refused
        self.usage = usage
