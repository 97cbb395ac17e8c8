"""Between wire messages and frozen models: the only place that knows both.

Model fields carry the names of the message's fields and enums the names of its values, so one pair of
functions serves every type. An absent optional field is None on the other side, never zero.
"""

from typing import TypeVar

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message

from fleet_controller.domain.base import Frozen

Model = TypeVar("Model", bound=Frozen)
Wire = TypeVar("Wire", bound=Message)


def from_wire(model: type[Model], message: Message) -> Model:
    """The frozen model of a message. Raises pydantic.ValidationError where the message breaks a rule."""
    return model.model_validate(MessageToDict(message, preserving_proto_field_name=True))


def to_wire(value: Frozen, message: type[Wire]) -> Wire:
    """The message of a frozen model. Raises google.protobuf.json_format.ParseError for an unknown field."""
    return ParseDict(value.model_dump(mode="json", exclude_none=True), message())
