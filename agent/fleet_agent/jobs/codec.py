"""Frozen dataclasses to and from plain JSON objects, with the field names of the wire.

The same pair of functions serves the job folders (JSON files) and the gRPC edge (MessageToDict), so
64-bit numbers may arrive as strings, as protobuf's JSON mapping writes them.
"""

import dataclasses
import functools
import hashlib
import json
import types
import typing
from enum import Enum
from typing import Any, TypeVar

Value = TypeVar("Value")


def encode(value: Any) -> Any:
    """JSON-ready form; absent optional fields are left out."""
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: encode(item) for name, item in pairs if item is not None}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


@functools.cache
def _hints(model: Any) -> dict[str, Any]:
    return typing.get_type_hints(model)


def decode(model: type[Value], data: dict[str, Any]) -> Value:
    """The dataclass of a JSON object; unknown keys are ignored. Raises ValueError or TypeError for a wrong type."""
    if not isinstance(data, dict):
        raise TypeError(f"{model.__name__} is not an object")
    known = _hints(typing.cast("Any", model))
    arguments = {name: _decode(known[name], item) for name, item in data.items() if name in known}
    return model(**arguments)


def _decode(hint: Any, item: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        (inner,) = [option for option in typing.get_args(hint) if option is not type(None)]
        return None if item is None else _decode(inner, item)
    if origin is tuple:
        inner = typing.get_args(hint)[0]
        return tuple(_decode(inner, element) for element in item)
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast("type[Any]", hint), item)
    return hint(item)


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces."""
    return json.dumps(encode(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """sha256 (64 hex digits) over the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
