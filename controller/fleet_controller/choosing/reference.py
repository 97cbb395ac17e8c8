"""Rows to fit to: the reference figures that ship with fleet, and what this fleet measured."""

import re
from collections.abc import Callable, Iterable, Mapping

from fleet_controller.choosing.devices import device_named as device_named  # for those who read rows
from fleet_controller.choosing.devices import known_device
from fleet_controller.choosing.speculation import method_of, speculation_of
from fleet_controller.choosing.work import (
    ENGINE_OF,
    LLAMA_CPP,
    MICRO_BATCH_TOKENS,
    Cell,
    DeviceFacts,
    EngineFacts,
    MeasuredSpeed,
    ModelWork,
    Phase,
)
from fleet_controller.results.columns import Metric, Result, Status
from fleet_controller.results.comparability import error_bar
from fleet_controller.results.tools import LLAMA_BENCH, MLX_LM_BENCHMARK
from fleet_inventory.chips import ChipKind
from fleet_inventory.speed_reference import (
    LLAMA_BENCH_DECIDES_SINCE_BUILD,
    NOTES_SOURCE,
    SpeedFigure,
    SpeedModelShape,
    build_of,
)

_FLASH_ATTENTION = re.compile(r"(?:^|\s)(?:-fa|--flash-attn)[ =](\S+)")
# llama-server does since https://github.com/ggml-org/llama.cpp/pull/15434 (end of August 2025, about b6325).
LLAMA_SERVER_DECIDES_SINCE_BUILD = 6325
# Half a 95 % interval of a mean is so many of its deviations.
NORMAL_95_PERCENT = 1.96
# A row that says nothing but the order of magnitude.
MOST_DEVIATION = 1.0
_RUNTIMES = {
    ChipKind.CUDA: "cuda",
    ChipKind.CUDA_UMA: "cuda",
    ChipKind.ROCM: "rocm",
    ChipKind.ROCM_UMA: "rocm",
    ChipKind.METAL: "metal",
    ChipKind.CPU: "cpu",
}
# As llama-bench names them.
_SAID_RUNTIMES = {"cuda": "cuda", "rocm": "rocm", "vulkan": "vulkan", "metal": "metal", "mtl": "metal"}


def reference_speeds(
    figures: Iterable[SpeedFigure],
    shapes: Mapping[str, SpeedModelShape],
    device_of: Callable[[str], DeviceFacts | None] = known_device,
) -> tuple[MeasuredSpeed, ...]:
    """Figures whose model and chip are known."""
    found = []
    for figure in figures:
        device, shape = device_of(figure.device), shapes.get(figure.model)
        if device is not None and shape is not None:
            found.append(_measured(figure, device, ModelWork.model_validate(shape.model_dump())))
    return tuple(found)


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
                speculation=speculation_of(result.flags),
                driver=driver_of(str(result.tool_fields.get("gpu_info", ""))),
                micro_batch=_micro_batch(result.tool_fields.get("n_ubatch")),
            ),
            quantization=result.quantization,
            weights_bytes=weights_bytes,
            phase=phase,
            tokens=result.generation_tokens if phase is Phase.DECODE else result.prompt_tokens,
            depth=result.depth,
        ),
        tokens_per_second=result.mean,
        source=f"{result.host}, run {result.run_id}",
        deviation=_deviation(result),
    )


def _deviation(result: Result) -> float:
    """Of the logarithm of a row's mean, as its error bar has it."""
    low, high = error_bar(result) or (0.0, 0.0)
    return min((high - low) / 2 / NORMAL_95_PERCENT / (result.mean or 1.0), MOST_DEVIATION)


def runtime_of(device: DeviceFacts, said: str = "") -> str:
    """What computes on a device: as llama-bench says ("Vulkan", "MTL,BLAS"), else the maker's own."""
    words = {word.strip().lower() for word in said.split(",")}
    return next((name for word, name in _SAID_RUNTIMES.items() if word in words), _RUNTIMES[device.kind])


def driver_of(gpu: str) -> str:
    """The Vulkan driver, as llama-bench names a GPU: "AMD Radeon 8060S Graphics (RADV GFX1151)"."""
    if "RADV" in gpu:
        return "radv"
    return "amdvlk" if "AMD open-source driver" in gpu else ""


def _micro_batch(said: object) -> int:
    """Tokens; 0 where the tool says nothing, or what llama.cpp does by itself."""
    tokens = int(said) if isinstance(said, int | float) else 0
    return 0 if tokens == MICRO_BATCH_TOKENS[LLAMA_CPP] else tokens


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
                speculation=method_of(figure.speculation),
                driver=figure.driver,
                micro_batch=figure.micro_batch_tokens,
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
