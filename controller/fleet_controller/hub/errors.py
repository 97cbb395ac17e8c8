"""What can go wrong between us and a hub, grouped by what a user can do."""


class HubError(Exception):
    """Base. `code` is kebab-case for machines, `remedy` says what to do next."""

    code = "hub"

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class HubUnreachableError(HubError):
    code = "hub-unreachable"


class RepositoryUnknownError(HubError):
    code = "repository-unknown"


class RepositoryGatedError(HubError):
    code = "repository-gated"


class NoFilesError(HubError):
    """A pattern that matches nothing; the message lists what is there."""

    code = "no-files"


class GgufError(HubError):
    """A file that is no GGUF, or ends before its header does."""

    code = "bad-gguf"
