"""Rows to fit to: the reference figures that ship with fleet, and what this fleet measured."""

import re
from collections.abc import Iterable, Mapping

from fleet_controller.choosing.work import (
    ENGINE_OF,
    LLAMA_CPP,
    Cell,
    DeviceFacts,
    EngineFacts,
    MeasuredSpeed,
    ModelWork,
    Phase,
    device_of,
)
from fleet_controller.results.columns import Metric, Result, Status
from fleet_controller.results.tools import LLAMA_BENCH, MLX_LM_BENCHMARK
from fleet_inventory.chips import ChipKind, find_chip
from fleet_inventory.speed_reference import (
    LLAMA_BENCH_DECIDES_SINCE_BUILD,
    NOTES_SOURCE,
    SpeedFigure,
    SpeedModelShape,
    build_of,
)

_CORES = re.compile(r"(.*) \((\d+)-core GPU\)")
_FLASH_ATTENTION = re.compile(r"(?:^|\s)(?:-fa|--flash-attn)[ =](\S+)")
# llama-server does since https://github.com/ggml-org/llama.cpp/pull/15434 (end of August 2025, about b6325).
LLAMA_SERVER_DECIDES_SINCE_BUILD = 6325
_RUNTIMES = {
    ChipKind.CUDA: "cuda",
    ChipKind.CUDA_UMA: "cuda",
    ChipKind.ROCM: "rocm",
    ChipKind.ROCM_UMA: "rocm",
    ChipKind.METAL: "metal",
}
# As llama-bench names them.
_SAID_RUNTIMES = {"cuda": "cuda", "rocm": "rocm", "vulkan": "vulkan", "metal": "metal", "mtl": "metal"}


def reference_speeds(
    figures: Iterable[SpeedFigure], shapes: Mapping[str, SpeedModelShape]
) -> tuple[MeasuredSpeed, ...]:
    """Figures whose model and chip are known."""
    found = []
    for figure in figures:
        device, shape = device_named(figure.device), shapes.get(figure.model)
        if device is not None and shape is not None:
            found.append(_measured(figure, device, ModelWork.model_validate(shape.model_dump())))
    return tuple(found)


def device_named(name: str, gpu_cores: int | None = None) -> DeviceFacts | None:
    """The chip of a driver's name, or of a table's that says "(40-core GPU)" behind it; None where nobody knows it."""
    cores = _CORES.fullmatch(name)
    chip = find_chip(cores[1], int(cores[2])) if cores else find_chip(name, gpu_cores)
    return device_of(chip) if chip else None


def own_speed(result: Result, model: ModelWork, device: DeviceFacts, weights_bytes: float) -> MeasuredSpeed | None:
    """A result of this fleet as a row; None where it says nothing about one request on one device.

    The lab notes' rows come through `reference_speeds`, so those among the results would count twice; other reference
    rows are what a fleet measured and exported.
    """
    plain = result.test_kind in (Metric.PREFILL, Metric.DECODE) and result.concurrency == 1 and result.device_count == 1
    says = result.status is Status.MEASURED and result.mean and result.model
    if not plain or not says or result.mean is None or result.provenance.startswith(NOTES_SOURCE):
        return None
    phase = Phase(result.test_kind.value)
    return MeasuredSpeed(
        cell=Cell(
            model=model,
            device=device,
            engine=EngineFacts(
                backend=result.backend,
                runtime=runtime_of(device, str(result.tool_fields.get("backends", ""))),
                version=result.backend_version,
                flash_attention=uses_flash_attention(
                    result.backend, result.client, result.backend_version, result.flags
                ),
                over_http=result.client not in (LLAMA_BENCH, MLX_LM_BENCHMARK),
                speculation="speculation" if "speculative" in result.flags else "",
            ),
            quantization=result.quantization,
            weights_bytes=weights_bytes,
            phase=phase,
            tokens=result.generation_tokens if phase is Phase.DECODE else result.prompt_tokens,
            depth=result.depth,
        ),
        tokens_per_second=result.mean,
        source=f"{result.host}, run {result.run_id}",
    )


def runtime_of(device: DeviceFacts, said: str = "") -> str:
    """What computes on a device: as llama-bench says ("Vulkan", "MTL,BLAS"), else the maker's own."""
    words = {word.strip().lower() for word in said.split(",")}
    return next((name for word, name in _SAID_RUNTIMES.items() if word in words), _RUNTIMES[device.kind])


def uses_flash_attention(backend: str, client: str, version: str, flags: str) -> bool:
    """Whether scores of attention stay on the chip: as the flags say, else what that version does by itself."""
    if ENGINE_OF.get(backend, backend) != LLAMA_CPP:
        return True
    asked = _FLASH_ATTENTION.search(flags)
    if asked and asked[1] != "auto":
        return asked[1] in ("1", "on")
    build = build_of(version)
    if not build:
        return True
    first = LLAMA_BENCH_DECIDES_SINCE_BUILD if client == LLAMA_BENCH else LLAMA_SERVER_DECIDES_SINCE_BUILD
    return build >= first


def _measured(figure: SpeedFigure, device: DeviceFacts, model: ModelWork) -> MeasuredSpeed:
    return MeasuredSpeed(
        cell=Cell(
            model=model,
            device=device,
            engine=EngineFacts(
                backend=figure.backend,
                runtime=figure.runtime,
                version=figure.version,
                flash_attention=figure.flash_attention,
                dequantizes=figure.dequantizes,
                over_http=figure.over_http,
                speculation=figure.speculation,
            ),
            quantization=figure.quantization,
            weights_bytes=figure.weights_bytes,
            phase=Phase(figure.test),
            tokens=figure.tokens,
            depth=figure.depth,
        ),
        tokens_per_second=figure.tokens_per_second,
        source=figure.source,
    )
