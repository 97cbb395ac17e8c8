"""Wire messages as plain data for `--json`: numbers stay numbers, unknown is null, enums are short lower-case words."""

from typing import Any

from google.protobuf.message import Message


def plain(message: Message) -> dict[str, Any]:
    """All fields of a message; an absent optional one is None, so that unknown and zero differ."""
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.is_repeated:
        return [_value(item, field) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _value(value, field)


def _value(value: Any, field: Any) -> Any:
    if isinstance(value, Message):
        return plain(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if field.enum_type is not None:
        return enum_word(field.enum_type, value)
    return value


def enum_word(enum_type: Any, number: int) -> str:
    """HOST_CONNECTION_NO_AGENT -> "no-agent"; a number that this version does not know is given as it is."""
    known = enum_type.values_by_number.get(number)
    if known is None:
        return str(number)
    prefix = enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(known.name.removeprefix(prefix).lower().replace("_", "-"))


def word_of(message: Message, name: str) -> str:
    """The short word of an enum field."""
    field = message.DESCRIPTOR.fields_by_name[name]
    return enum_word(field.enum_type, getattr(message, name))
