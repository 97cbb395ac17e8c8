"""The hosts that a user's ssh_config names, as a start for hosts.yaml.

Only the aliases are taken: host name, user, port, keys and jumps stay where they are, and ssh and fleet keep agreeing.
"""

import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from fleet_inventory.base import Frozen, InventoryError

_DEPTH_LIMIT = 16  # as in OpenSSH's readconf.c, READCONF_MAX_DEPTH
_LINE = re.compile(r"\s*([A-Za-z0-9]+)(?:\s*=\s*|\s+)(.*?)\s*\Z")


class SshConfigHost(Frozen):
    """One concrete alias; `host_name` and `user` are for showing only."""

    alias: str
    host_name: str | None = None
    user: str | None = None


class _Block(Frozen):
    patterns: tuple[str, ...]
    settings: dict[str, str]


def hosts_from_ssh_config(path: Path) -> list[SshConfigHost]:
    """Concrete `Host` aliases in the order of the file; patterns (`*`, `?`, `!x`) and `Match` blocks name no host.

    `Include` is followed. A missing file is no hosts. Raises InventoryError when a file cannot be read.
    """
    blocks = list(_blocks(path, path.parent, ("*",), 0)) if path.exists() else []
    aliases = dict.fromkeys(alias for block in blocks for alias in block.patterns if not re.search(r"[*?!]", alias))
    return [
        SshConfigHost(alias=alias, host_name=_first(blocks, alias, "hostname"), user=_first(blocks, alias, "user"))
        for alias in aliases
    ]


def _first(blocks: list[_Block], alias: str, key: str) -> str | None:
    """As ssh reads it: the first value in the file wins."""
    for block in blocks:
        if key in block.settings and _matches(alias, block.patterns):
            return block.settings[key].replace("%h", alias)
    return None


def _matches(alias: str, patterns: tuple[str, ...]) -> bool:
    if any(fnmatchcase(alias, pattern[1:]) for pattern in patterns if pattern.startswith("!")):
        return False
    return any(fnmatchcase(alias, pattern) for pattern in patterns if not pattern.startswith("!"))


def _blocks(path: Path, base: Path, outer: tuple[str, ...], depth: int) -> Iterator[_Block]:
    patterns: tuple[str, ...] = ("*",)
    settings: dict[str, str] = {}
    for key, words in _lines(path):
        if key in ("host", "match"):
            yield _Block(patterns=patterns, settings=settings)
            # What a Match block says depends on more than the name, so it belongs to no alias here.
            patterns, settings = (_within(words, outer) if key == "host" else ()), {}
        elif key == "include" and depth < _DEPTH_LIMIT:
            yield _Block(patterns=patterns, settings=settings)
            for included in (file for word in words for file in _files(word, base)):
                yield from _blocks(included, base, patterns if patterns != ("*",) else outer, depth + 1)
            settings = {}
        elif words:
            settings.setdefault(key, words[0])
    yield _Block(patterns=patterns, settings=settings)


def _within(words: list[str], outer: tuple[str, ...]) -> tuple[str, ...]:
    """An Include inside a Host block counts only for hosts that this block matches."""
    return tuple(word for word in words if re.search(r"[*?!]", word) or _matches(word, outer))


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InventoryError(f"{path}: cannot be read: {error.strerror}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        match = _LINE.match(line)
        if match is None:
            continue  # empty, or a comment
        try:
            yield match.group(1).lower(), shlex.split(match.group(2), comments=True)
        except ValueError as error:
            raise InventoryError(f"{path}:{number}: {str(error).lower()}; close the quote") from error


def _files(word: str, base: Path) -> list[Path]:
    pattern = Path(word).expanduser() if word.startswith("~") else base / word
    anchor = Path(pattern.anchor or ".")
    return [file for file in sorted(anchor.glob(str(pattern.relative_to(anchor)))) if file.is_file()]
