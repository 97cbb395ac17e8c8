"""The base of every model in the controller."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable value; unknown fields are ignored, so that a newer agent can say more than we know."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Problem(Frozen):
    """One thing that went wrong, in the words a user sees; `tail` = the last lines that the failed program printed."""

    code: str
    message: str
    remedy: str = ""
    tail: tuple[str, ...] = ()


class EnvironmentVariable(Frozen):
    name: str
    value: str
