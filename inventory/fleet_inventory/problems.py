"""Say what is wrong with a file in the words of the file: its name, the line, the key, and what would be right."""

import difflib
import types
from collections.abc import Iterable
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fleet_inventory.document import Document, KeyPath


def near(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Up to `limit` of `known` that look like `name`, best first, compared without case."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    if name.lower() in by_lower:
        return [by_lower[name.lower()]]
    found = difflib.get_close_matches(name.lower(), list(by_lower), n=limit, cutoff=0.55)
    return [by_lower[lower] for lower in found]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'port'?`, or what there is to choose from."""
    choices = list(known)
    similar = near(name, choices, limit=1)
    if similar:
        return f", did you mean '{similar[0]}'?"
    return f"; known here: {', '.join(choices)}" if choices else ""


def line_message(document: Document, key_path: KeyPath, text: str) -> tuple[int, str]:
    """A line number and the whole message, `hosts.yaml:12: hosts.gpu1.prot: ...`."""
    line = document.line_of(key_path)
    where = f"{document.path}:{line}"
    said = " ".join(text.splitlines())  # a value may hold a line break of any of Unicode's kinds
    return line, f"{where}: {dotted(key_path)}: {said}" if key_path else f"{where}: {said}"


def dotted(key_path: KeyPath) -> str:
    """`hosts.gpu1.groups[0]`."""
    text = ""
    for part in key_path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def validate(model: type[BaseModel], document: Document) -> tuple[BaseModel | None, list[tuple[int, str]]]:
    """The document as `model`, or None, and every problem found in it as (line, message)."""
    problems = [
        (line, f"{document.path}:{line}: {dotted(path)}: given twice, first on line {first}; keep one")
        for path, line, first in document.duplicates
    ]
    value: BaseModel | None = None
    try:
        value = model.model_validate(document.data)
    except ValidationError as error:
        for details in error.errors():
            path = tuple(part for part in details["loc"] if part != "[key]")
            problems.append(line_message(document, path, _in_words(model, path, details)))
    return value, problems


def listing(problems: Iterable[tuple[int, str]]) -> str:
    """All messages in the order of the file, each once."""
    return "\n".join(dict.fromkeys(message for _, message in sorted(problems)))


def _in_words(model: type[BaseModel], path: KeyPath, details: ErrorDetails) -> str:
    kind, given, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "extra_forbidden":
        return "unknown key" + did_you_mean(str(path[-1]), _keys_at(model, path[:-1]))
    if kind == "value_error":
        return str(context["error"])
    if kind == "missing":
        return "missing"
    if kind in ("enum", "literal_error"):
        choices = str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        return f"must be one of {', '.join(choices)}, not {_shown(given)}" + (
            f"; did you mean '{near(str(given), choices)[0]}'?" if near(str(given), choices) else ""
        )
    if kind == "string_type":
        return f"must be text, not {_shown(given)}" + ("" if isinstance(given, dict | list) else "; put it in quotes")
    if kind.startswith(("int", "float")):
        return f"must be a {'whole ' if kind.startswith('int') else ''}number, not {_shown(given)}"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"must hold 'key: value' lines, not {_shown(given)}"
    if kind in ("tuple_type", "list_type"):
        return f"must be a list like [a, b], not {_shown(given)}"
    return f"{details['msg'][:1].lower()}{details['msg'][1:]}, not {_shown(given)}"


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "yes/no (true/false)"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return f"'{value}'" if isinstance(value, str) else str(value)


def _keys_at(model: type[BaseModel], path: KeyPath) -> list[str]:
    current: Any = model
    for part in path:
        current = _step(current, part)
    current = _bare(current)
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def _step(annotation: Any, part: str | int) -> Any:
    bare = _bare(annotation)
    if isinstance(bare, type) and issubclass(bare, BaseModel):
        found = bare.model_fields.get(str(part))
        return found.annotation if found else None
    arguments = get_args(bare)
    return (arguments[1] if get_origin(bare) is dict else arguments[0]) if arguments else None


def _bare(annotation: Any) -> Any:
    """The type without Annotated and without `| None`."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return _bare(next(part for part in get_args(annotation) if part is not type(None)))
    return annotation
