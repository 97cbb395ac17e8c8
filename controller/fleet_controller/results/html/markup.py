"""HTML as text that is escaped unless it was made here, so that a host named <script> is a name."""

from collections.abc import Iterable
from html import escape
from typing import TypeAlias

VOID_ELEMENTS = frozenset({"br", "input", "link", "meta"})


class Markup(str):
    """HTML that is ready to be shown."""

    __slots__ = ()


Content: TypeAlias = "str | int | float | Iterable[Content] | None"
Attribute: TypeAlias = str | int | float | bool | None


def markup(content: Content) -> Markup:
    """The parts one after the other; whatever is no Markup is escaped, None is nothing."""
    if content is None:
        return Markup("")
    if isinstance(content, Markup):
        return content
    if isinstance(content, str | int | float):
        return Markup(escape(str(content)))
    return Markup("".join(map(markup, content)))


def tag(name: str, /, *content: Content, **attributes: Attribute) -> Markup:
    """An element. `class_` is the attribute class, `data_host` data-host; None and False leave an attribute out."""
    start = f"<{name}{''.join(_attribute(key, value) for key, value in attributes.items())}>"
    return Markup(start if name in VOID_ELEMENTS else f"{start}{markup(content)}</{name}>")


def _attribute(key: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'


def link(target_id: str, *content: Content, **attributes: Attribute) -> Markup:
    """To an element of this page."""
    return tag("a", *content, href=f"#{target_id}", **attributes)


def scrolling_box(label: str, *content: Content) -> Markup:
    """What may be wider than a phone scrolls in itself, also by keyboard."""
    return tag("div", *content, class_="scroll", role="region", aria_label=label, tabindex=0)
