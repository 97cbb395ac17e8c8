"""What predictions are made of: the engine as it would run, and a cell for each phase. Pure."""

from collections.abc import Iterator, Mapping

from fleet_controller.choosing.reference import runtime_of, uses_flash_attention
from fleet_controller.choosing.work import Cell, DeviceFacts, EngineFacts, ModelWork, Phase


def engine_on(
    device: DeviceFacts, backend: str, version: str, *, client: str = "", flags: str = "", speculation: str = ""
) -> EngineFacts:
    """The engine as the maker's own runtime of a device has it; `client` and `flags` tell of flash attention."""
    return EngineFacts(
        backend=backend,
        runtime=runtime_of(device),
        version=version,
        flash_attention=uses_flash_attention(backend, client, version, flags),
        speculation=speculation,
    )


def cells_of(
    model: ModelWork,
    device: DeviceFacts,
    engine: EngineFacts,
    quantization: str,
    weights_bytes: float,
    tokens: Mapping[Phase, int],
    depth: int = 0,
) -> Iterator[tuple[Phase, Cell]]:
    """A cell for each phase of which tokens are wanted."""
    for phase, count in tokens.items():
        if count:
            cell = Cell(
                model=model,
                device=device,
                engine=engine,
                quantization=quantization,
                weights_bytes=weights_bytes,
                phase=phase,
                tokens=count,
                depth=depth,
            )
            yield phase, cell
