"""Read a YAML file and remember on which line each key stands.

PyYAML alone loses the lines and lets a later duplicate key win in silence; people then look for an hour why a host
ignores a setting. Keys are always text: a host may be called `01`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fleet_inventory.base import InventoryError

KeyPath = tuple[str | int, ...]

# Wheels of PyYAML come with libyaml; a build from source may lack it.
_FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# What PyYAML says, and what a person does about it.
_HINTS = (
    ("'\\t'", "indent with spaces: YAML takes no tabs"),
    ("mapping values are not allowed", "a value that contains ': ' needs quotes; or this line is indented too far"),
    ("could not find expected ':'", "each line reads 'key: value', with a space after the colon"),
    ("expected <block end>", "this line is indented differently from the lines of the same block above it"),
    ("found unexpected end of stream", "a quote or bracket is not closed"),
    ("expected ',' or", "a bracket is not closed, or a comma is missing"),
    ("expected a single document", "the file may hold one document: remove the '---' line in the middle"),
    ("cannot start any token", "put the value in quotes"),
    ("undefined alias", "'*' starts a YAML alias: put the value in quotes"),
    ("while scanning an alias", "'*' starts a YAML alias: put the value in quotes"),
    ("special characters are not allowed", "save the file as plain UTF-8 text"),
)


@dataclass(frozen=True)
class Document:
    """Data of one YAML file; `lines` has the line (from 1) of each key or list item by its path."""

    path: Path
    data: Any
    lines: dict[KeyPath, int]
    duplicates: tuple[tuple[KeyPath, int, int], ...]  # path, line, line of the first one

    def line_of(self, key_path: KeyPath) -> int:
        """The line of a key, or of the nearest key around it."""
        for length in range(len(key_path), 0, -1):
            if key_path[:length] in self.lines:
                return self.lines[key_path[:length]]
        return 1


def read_document(path: Path, verbatim: Callable[[KeyPath], bool]) -> Document:
    """Read `path`. Scalars under a key path that `verbatim` accepts stay text exactly as written (`0.00`, `1`).

    Raises InventoryError when the file cannot be read or is not YAML.
    """
    try:
        return parse_document(path.read_text(encoding="utf-8"), path, verbatim)
    except UnicodeDecodeError as error:
        raise InventoryError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise InventoryError(f"{path}: cannot be read: {error.strerror}") from error


def parse_document(text: str, path: Path, verbatim: Callable[[KeyPath], bool]) -> Document:
    """As read_document, for text at hand; `path` is for messages only."""
    text = text.removeprefix("\ufeff")
    try:
        return _build(_FAST_LOADER, text, path, verbatim)
    except (yaml.YAMLError, RecursionError):
        pass
    # libyaml reads ten times as fast, but its messages say less: so the slow reader gets to tell what is wrong.
    try:
        return _build(yaml.SafeLoader, text, path, verbatim)
    except yaml.YAMLError as error:
        raise InventoryError(_explain(error, path)) from error
    except RecursionError:
        raise InventoryError(f"{path}: brackets are nested too deeply to be read") from None


def _build(loader: Any, text: str, path: Path, verbatim: Callable[[KeyPath], bool]) -> Document:
    builder = _Builder(loader(text), verbatim)
    data = builder.build()
    return Document(path=path, data=data, lines=builder.lines, duplicates=tuple(builder.duplicates))


def _explain(error: yaml.YAMLError, path: Path) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
    said = " ".join(str(part) for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part)
    said = said or str(error).splitlines()[0]
    hint = next((hint for key, hint in _HINTS if key in said), "")
    return f"{where}: cannot be read as YAML: {said}" + (f"; {hint}" if hint else "")


@dataclass
class _Builder:
    loader: Any  # a yaml.SafeLoader over the text, or its twin from libyaml
    verbatim: Callable[[KeyPath], bool]
    lines: dict[KeyPath, int] = field(default_factory=dict)
    duplicates: list[tuple[KeyPath, int, int]] = field(default_factory=list)
    _open: set[int] = field(default_factory=set)
    _flat: set[int] = field(default_factory=set)

    def build(self) -> Any:
        try:
            node = self.loader.get_single_node()
            return None if node is None else self._value(node, ())
        finally:
            self.loader.dispose()

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        if isinstance(node, yaml.ScalarNode):
            if self.verbatim(path) and not node.tag.endswith(":null"):
                return node.value
            try:
                return self.loader.construct_object(node)
            except ValueError:  # 2026-13-01 looks like a date and is none
                return node.value
        if id(node) in self._open:
            raise yaml.constructor.ConstructorError(None, None, "an alias refers to itself", node.start_mark)
        self._open.add(id(node))
        try:
            return self._mapping(node, path) if isinstance(node, yaml.MappingNode) else self._sequence(node, path)
        finally:
            self._open.remove(id(node))

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        if id(node) not in self._flat:  # a node behind an alias is met again, with its merge keys already spread out
            self._note_duplicates(node, path)
            self._flat.add(id(node))
            self.loader.flatten_mapping(node)
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key_path = (*path, str(key_node.value))
            self.lines[key_path] = key_node.start_mark.line + 1
            result[str(key_node.value)] = self._value(value_node, key_path)
        return result

    def _note_duplicates(self, node: yaml.MappingNode, path: KeyPath) -> None:
        first: dict[str, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in first:
                self.duplicates.append(((*path, key), line, first[key]))
            first.setdefault(key, line)

    def _sequence(self, node: yaml.Node, path: KeyPath) -> list[Any]:
        result = []
        for index, item in enumerate(node.value):
            self.lines[(*path, index)] = item.start_mark.line + 1
            result.append(self._value(item, (*path, index)))
        return result
