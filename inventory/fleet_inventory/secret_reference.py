"""How a secret is named wherever one is wanted: by where it lies, never by itself."""

import re

from fleet_inventory.base import Frozen

FORMS = "env:NAME or file:/path"
PATTERN = r"^(?:env:[A-Za-z_][A-Za-z0-9_]*|file:(?:/|~/)[^\n\0]*)$"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class SecretReference(Frozen):
    """A variable of the controller's environment, or a file on its machine; exactly one is set."""

    variable: str = ""
    path: str = ""

    def __str__(self) -> str:
        return f"env:{self.variable}" if self.variable else f"file:{self.path}"


def parse_reference(text: str) -> SecretReference:
    """Raises ValueError; its text never repeats what was given, since that may be the secret itself."""
    kind, colon, rest = text.partition(":")
    if colon and kind == "env" and _VARIABLE.match(rest):
        return SecretReference(variable=rest)
    if colon and kind == "env":
        raise ValueError("after 'env:' comes the name of a variable: letters, digits and '_'")
    if colon and kind == "file" and rest.startswith(("/", "~/")) and not re.search(r"[\n\0]", rest):
        return SecretReference(path=rest)
    if colon and kind == "file":
        raise ValueError("after 'file:' comes an absolute path, or one that starts with '~/'")
    raise ValueError(f"must say where the secret lies, {FORMS}, and never be the secret itself")
