"""What a user may ask of a server beyond context and slots, and which backend takes what of it."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from fleet_controller.domain.base import Frozen

# Each option as a user types it: a refusal names it so.
FLAGS = {
    "kv_cache_type": "--kv-cache-type",
    "flash_attention": "--flash-attention",
    "tensor_parallel": "--tensor-parallel",
    "memory_fraction": "--memory-fraction",
    "dtype": "--dtype",
    "vision": "--vision",
}
F16_BYTES = 2.0


class EngineOptions(Frozen):
    """What was asked of the server, in the backend's own words; "" and None leave it to the backend.

    `vision`: True = with the model's multimodal projector, False = without, None = as the catalog has it.
    """

    kv_cache_type: str = ""
    flash_attention: str = ""
    tensor_parallel: int | None = None
    memory_fraction: float | None = None
    dtype: str = ""
    vision: bool | None = None

    def asked(self) -> dict[str, object]:
        """The options that somebody asked for, by name."""
        values = {name: getattr(self, name) for name in FLAGS}
        return {name: value for name, value in values.items() if value not in ("", None)}


class OptionRefusedError(Exception):
    """A backend does not take an option, or not that value of it."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


@runtime_checkable
class TakesEngineOptions(Protocol):
    """The trait of backends that take some of EngineOptions; one without it takes none.

    `engine_options` has the options taken and the words that each may be; () = any value.
    """

    engine_options: Mapping[str, tuple[str, ...]]

    def check_options(self, options: EngineOptions) -> None:
        """What the words alone do not tell: options that exclude each other. Raises OptionRefusedError."""
        ...

    def bytes_per_cached_value(self, options: EngineOptions) -> float:
        """How many bytes one value of the KV cache takes."""
        ...


def check_engine_options(name: str, backend: object, options: EngineOptions) -> None:
    """Raises OptionRefusedError for the first option that the backend `name` does not take as it was asked for."""
    taken = backend.engine_options if isinstance(backend, TakesEngineOptions) else {}
    for option, value in options.asked().items():
        flag = "--no-vision" if value is False else FLAGS[option]
        if option not in taken:
            others = "leave it out, or choose a backend that has it with --backend"
            raise OptionRefusedError(f"{name} has no option for {flag}", others)
        words = taken[option]
        if words and value not in words:
            raise OptionRefusedError(f"{name} knows no {flag} {value}", f"it knows: {', '.join(words)}")
    if isinstance(backend, TakesEngineOptions):
        backend.check_options(options)


def bytes_per_cached_value(backend: object, options: EngineOptions) -> float:
    """Of any backend: 16 bits where it takes no option that changes it."""
    return backend.bytes_per_cached_value(options) if isinstance(backend, TakesEngineOptions) else F16_BYTES
