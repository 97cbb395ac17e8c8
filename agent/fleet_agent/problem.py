"""What the agent says when it refuses or cannot do something: one line, and what to do next.

It knows nothing of gRPC, so that jobs, steps and services raise it too; server/problems.py puts it on the wire.
"""


class ProblemError(Exception):
    """A refusal or failure that a user is told about.

    code: machine-readable, kebab-case ("disk-full"); message: what happened, one line; remedy: what to do
    next, empty where nothing is known; status: the name of the gRPC status it becomes; tail: the last lines of what
    a program printed that failed.
    """

    def __init__(
        self,
        code: str,
        message: str,
        remedy: str = "",
        status: str = "FAILED_PRECONDITION",
        tail: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy
        self.status = status
        self.tail = tail

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message
