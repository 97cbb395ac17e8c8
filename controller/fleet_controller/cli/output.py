"""What a command prints: tables and JSON to stdout. Aligned text when piped, a little colour on a terminal."""

import itertools
import json
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from fleet_controller.domain.sizes import gibibytes as gibibytes

GREEN, YELLOW, RED, BOLD, DIM, PLAIN = "32", "33", "31", "1", "2", ""
GAP = INDENT = "  "
LAST_COLUMN_LEAST = 24


def can_ask() -> bool:
    """Whether a question can be put: stdin is a terminal, and so is stderr, where questions go."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def styled(text: str, style: str, stream: TextIO) -> str:
    return f"\x1b[{style}m{text}\x1b[0m" if style and stream.isatty() else text


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    styles: dict[str, str] | None = None,
    stream: TextIO | None = None,
) -> None:
    """A table without lines. `styles` colours whole cell texts on a terminal.

    Where a terminal is too narrow, each row goes on in further, indented lines, and the last column is wrapped at its
    words: nothing is left out.
    """
    stream = stream or sys.stdout
    table = [list(row) for row in rows]
    widths = [max(width_of(row[index]) for row in [list(columns), *table]) for index in range(len(columns))]
    terminal = stream.isatty()
    limit = shutil.get_terminal_size().columns if terminal else None
    groups = _groups(widths, limit)
    for line in _lines(columns, widths, groups, limit):
        print(styled(line, BOLD, stream), file=stream)
    for row in table:
        for line in _lines(row, widths, groups, limit, styles if terminal else None):
            print(line, file=stream)


def _groups(widths: Sequence[int], limit: int | None) -> list[range]:
    """Which columns share a line of a terminal with `limit` columns; the last one can do with little."""
    starts, used = [0], widths[0]
    for index, width in enumerate(widths[1:], start=1):
        least = min(width, LAST_COLUMN_LEAST) if index == len(widths) - 1 else width
        if limit is not None and used + len(GAP) + least > limit:
            starts.append(index)
            used = len(INDENT) + width
        else:
            used += len(GAP) + width
    return [range(first, end) for first, end in itertools.pairwise([*starts, len(widths)])]


def _lines(
    cells: Sequence[str],
    widths: Sequence[int],
    groups: Sequence[range],
    limit: int | None,
    styles: dict[str, str] | None = None,
) -> list[str]:
    """The lines of one row."""
    lines = []
    for group in groups:
        line, used = (INDENT, len(INDENT)) if group.start else ("", 0)
        for index in group:
            cell = cells[index]
            if index == len(cells) - 1:
                first, *rest = _wrapped(cell, None if limit is None else max(limit - used, LAST_COLUMN_LEAST))
                lines += [line + _coloured(first, styles), *(" " * used + text for text in rest)]
                break
            line += _coloured(cell, styles) + " " * (widths[index] - width_of(cell)) + GAP
            used += widths[index] + len(GAP)
        else:
            lines.append(line)
    return [line.rstrip() for line in lines]


def _wrapped(text: str, limit: int | None) -> list[str]:
    """`text` in lines of `limit` characters; words stay whole, so that a path or URL can be copied."""
    if limit is None or width_of(text) <= limit:
        return [text]
    import textwrap

    return textwrap.wrap(text, limit, break_long_words=False, break_on_hyphens=False) or [""]


def _coloured(cell: str, styles: dict[str, str] | None) -> str:
    style = (styles or {}).get(cell, PLAIN)
    return f"\x1b[{style}m{cell}\x1b[0m" if style else cell


def width_of(text: str) -> int:
    """Columns that `text` takes on a terminal; East Asian wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def duration(seconds: float) -> str:
    """ "12 s", "3 min", "5 h", "2 d": for ages and uptimes."""
    for limit, unit, divisor in ((90, "s", 1), (5400, "min", 60), (129600, "h", 3600)):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def shell_quoted(argv: Sequence[str], environment: Sequence[tuple[str, str]] = ()) -> str:
    """One command that can be pasted into a shell, its environment in front."""
    import shlex

    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in environment), *map(shlex.quote, argv)])


def confirm(question: str, assume_yes: bool) -> bool:
    """Ask on the terminal. Without one, `--yes` is needed: raises UsageFailure (exit 2)."""
    from fleet_controller.cli.failures import UsageFailure

    if assume_yes:
        return True
    if not can_ask():
        raise UsageFailure(
            "this changes hosts, and there is no terminal to ask on",
            "look at the plan above, then repeat the command with --yes",
        )
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    agreed = sys.stdin.readline().strip().lower() in ("y", "yes")
    if not agreed:
        print("nothing was changed", file=sys.stderr)
    return agreed
