"""Command lines for the very build that is there: nothing is passed that its own `--help` does not list."""

from collections.abc import Iterable

from fleet_controller.backends.base import BackendError, Installation
from fleet_controller.domain.base import Frozen


class Piece(Frozen):
    """An option with its value, or words without one. `optional`: the server does without it."""

    words: tuple[str, ...]
    optional: bool = False


def needed(*words: str) -> Piece:
    return Piece(words=words)


def welcome(*words: str) -> Piece:
    return Piece(words=words, optional=True)


def known_only(
    pieces: Iterable[Piece], installation: Installation, newer: str
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The command line that the build knows, and the optional pieces that were left out.

    Where its options are not known (it is not installed yet, or by an earlier version of fleet) it is taken to know
    all of them, as the pinned build does. Raises BackendError for a piece that is needed; `newer` is a version to name.
    """
    arguments: list[str] = []
    left_out: list[tuple[str, ...]] = []
    for piece in pieces:
        unknown = next((word for word in piece.words if _is_unknown(word, installation)), None)
        if unknown is None:
            arguments += piece.words
        elif piece.optional:
            left_out.append(piece.words)
        else:
            raise BackendError(
                "option-unknown-to-build",
                f"this build of {installation.backend} ({installation.version}) does not know {unknown}, "
                "which is needed here",
                f"take a newer one: --backend-version {newer}",
            )
    return tuple(arguments), tuple(left_out)


def knows(installation: Installation, option: str) -> bool:
    """Whether the build has an option; yes where nobody knows."""
    return not installation.flags or option in installation.flags


def _is_unknown(word: str, installation: Installation) -> bool:
    """Only what is an option: values may begin with a dash too ("-1")."""
    return word.startswith("-") and word[1:2] not in tuple("0123456789.") and not knows(installation, word)
