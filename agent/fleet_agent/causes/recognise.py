"""Finding the cause in a text, and the lines that show it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SHOWN_LINES = 12
_LONGEST_LINE = 300
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True)
class Cause:
    """One text that programs print, and what it means.

    `detail...` groups of the pattern go into the message. permanent: the same start ends the same way, so it is not
    tried again before the service was ever ready.
    """

    pattern: re.Pattern[str]
    code: str
    message: str
    remedy: str
    permanent: bool = False


@dataclass(frozen=True)
class Known:
    """A cause that was found: one line of what it is, one of what helps, and the line that tells it."""

    code: str
    message: str
    remedy: str
    permanent: bool
    line: str


def cause(pattern: str, code: str, message: str, remedy: str, permanent: bool = False) -> Cause:
    return Cause(re.compile(pattern, re.IGNORECASE), code, message, remedy, permanent)


def find_cause(causes: Sequence[Cause], text: str) -> Known | None:
    """The first cause of the table that the text tells of; None where nothing is known."""
    for one in causes:
        found = one.pattern.search(text)
        if found is not None:
            detail = next((value for value in found.groupdict().values() if value), "")
            message = f"{one.message}: {' '.join(detail.split())[:_LONGEST_LINE]}" if detail else one.message
            return Known(one.code, message, one.remedy, one.permanent, _line_at(text, found.start()))
    return None


def _line_at(text: str, position: int) -> str:
    return text[text.rfind("\n", 0, position) + 1 :].partition("\n")[0]


def shown_lines(lines: Iterable[str], telling: str = "") -> tuple[str, ...]:
    """The last lines for a person; the one that tells the cause comes first where it is further up.

    Free of what would move a cursor: programs draw progress bars and colours.
    """
    kept = [line.rstrip() for line in lines if line.strip()]
    shown = kept[-SHOWN_LINES:]
    if telling.strip() and telling.rstrip() not in shown:
        shown = [telling.rstrip(), "[...]", *shown[2:]]
    return tuple(_CONTROL.sub("", line)[:_LONGEST_LINE] for line in shown)
