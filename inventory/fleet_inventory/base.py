"""The base of every model in the inventory."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable value. A field that nobody knows is an error: these models describe files that people write."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class InventoryError(Exception):
    """A file of the inventory cannot be used. The text lists every problem, one a line, with file and line number."""


class CatalogError(InventoryError):
    """An unknown model or quantization, or a description that cannot be used; the text says what there is."""
