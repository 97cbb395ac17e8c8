"""What a command prints: tables and JSON to stdout. Aligned text when piped, a little colour on a terminal."""

import json
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

GREEN, YELLOW, RED, BOLD, DIM, PLAIN = "32", "33", "31", "1", "2", ""
GAP = "  "


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
    """A table without lines; on a terminal the last column is cut at its edge. `styles` colours whole cell texts."""
    stream = stream or sys.stdout
    table = [list(row) for row in rows]
    widths = [max(width_of(row[index]) for row in [list(columns), *table]) for index in range(len(columns))]
    limit = shutil.get_terminal_size().columns if stream.isatty() else None
    print(styled(_line(columns, widths, limit), BOLD, stream), file=stream)
    for row in table:
        print(_line(row, widths, limit, styles if stream.isatty() else None), file=stream)


def _line(cells: Sequence[str], widths: list[int], limit: int | None, styles: dict[str, str] | None = None) -> str:
    parts = []
    used = 0
    for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        last = index == len(cells) - 1
        if last and limit is not None:
            cell = cell[: max(limit - used, 8)]
        padding = "" if last else " " * (width - width_of(cell))
        used += width + len(GAP)
        style = (styles or {}).get(cell, PLAIN)
        parts.append((f"\x1b[{style}m{cell}\x1b[0m" if style else cell) + padding)
    return GAP.join(parts).rstrip()


def width_of(text: str) -> int:
    """Columns that `text` takes on a terminal; East Asian wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def gibibytes(size: int | None) -> str:
    """Bytes as GiB, or an unknown one as "?"."""
    if size is None:
        return "?"
    if abs(size) < 1 << 30:
        return f"{size / (1 << 20):.0f} MiB" if abs(size) >= 1 << 20 else f"{size / 1024:.0f} KiB"
    return f"{size / (1 << 30):.1f} GiB"


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
    return sys.stdin.readline().strip().lower() in ("y", "yes")
