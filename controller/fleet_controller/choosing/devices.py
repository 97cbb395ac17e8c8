"""What a device can do, for predictions: from the inventory of chips, or a guess from its name. Pure.

A result names its device and no more, so a guess is made from the name alone: rows and questions then agree in it.
"""

import re

from fleet_controller.choosing.work import DeviceFacts
from fleet_inventory.chips import Chip, ChipKind, find_chip

_GPU_CORES = re.compile(r"(.*) \((\d+)-core GPU\)")
_CPU_CORES = re.compile(r"(\d+)-core", re.IGNORECASE)
_SERVER = re.compile(r"\b(epyc|xeon|threadripper|opteron|neoverse|altra|graviton)", re.IGNORECASE)
_CPU = re.compile(
    r"\b(ryzen|core\(tm\)|core i\d|core ultra|pentium|celeron|athlon|cortex|processor|cpu)", re.IGNORECASE
)
# What is common among the chips of one kind in the inventory, bytes/s. The first pattern that is found counts.
_KINDS = (
    (re.compile(r"\bapple\b", re.IGNORECASE), ChipKind.METAL, 200e9),
    (re.compile(r"\b(jetson|orin|thor|gb10)\b", re.IGNORECASE), ChipKind.CUDA_UMA, 270e9),
    (re.compile(r"\b(nvidia|geforce|rtx|gtx|quadro|tesla)\b", re.IGNORECASE), ChipKind.CUDA, 800e9),
    (re.compile(r"\bradeon (\d+m|\d+s)?\s*graphics", re.IGNORECASE), ChipKind.ROCM_UMA, 100e9),
    (re.compile(r"\b(amd|radeon|instinct)\b", re.IGNORECASE), ChipKind.ROCM, 800e9),
)
# Desktops have two channels of memory: 50 to 100 GB/s. Servers have more the more cores they have: 460 GB/s for the 64
# of an AMD EPYC 9554, by its maker. How many are filled, probes do not tell.
DESKTOP_BYTES_PER_SECOND, BYTES_PER_SECOND_OF_SERVER_CORE, MOST_BYTES_PER_SECOND = 70e9, 7e9, 460e9
# Cores that are counted where a name does not say how many.
DESKTOP_CORES, SERVER_CORES = 8, 16
# 8-bit dot products: 3 GHz, two units, 8 lanes of AVX2, 4 products a lane, 2 operations each.
OPERATIONS_PER_SECOND_OF_CORE = 3e9 * 2 * 8 * 4 * 2
GUESS = "not in the inventory of chips: guessed from its name; `fleet calibrate` measures it"


def known_device(name: str, gpu_cores: int | None = None) -> DeviceFacts | None:
    """The chip of a driver's name, or of a table's that says "(40-core GPU)" behind it; None where nobody knows it."""
    cores = _GPU_CORES.fullmatch(name)
    chip = find_chip(cores[1], int(cores[2])) if cores else find_chip(name, gpu_cores)
    return device_of(chip) if chip else None


def device_named(name: str, gpu_cores: int | None = None) -> DeviceFacts | None:
    """As known_device, else what the name suggests, marked as a guess; None for a name that says nothing."""
    return known_device(name, gpu_cores) or _guess(name)


def device_of(chip: Chip) -> DeviceFacts:
    """A chip of the inventory. Matrix units: 16-bit operations, or half the 8-bit ones where that is more.

    GeForce cards have 16-bit products at half rate where sums have 32 bits; llama.cpp multiplies 8-bit integers, or
    16-bit numbers with 16-bit sums, and gets the full rate.
    """
    rates = [rate for rate in (chip.fp16_tflops, chip.int8_tops / 2 if chip.int8_tops else None) if rate]
    return DeviceFacts(
        name=chip.name if chip.gpu_cores is None else f"{chip.name} ({chip.gpu_cores} cores)",
        kind=chip.kind,
        bandwidth=chip.bandwidth_gb_per_second * 1e9,
        matrix_operations=max(rates) * 1e12 if rates else None,
        vector_operations=chip.fp32_tflops * 1e12 if chip.fp32_tflops else None,
        older_instructions_share=chip.older_instructions_share,
        source=chip.source,
    )


def _guess(name: str) -> DeviceFacts | None:
    if _SERVER.search(name) or _CPU.search(name):
        return _cpu(name)
    found = next(((kind, bandwidth) for pattern, kind, bandwidth in _KINDS if pattern.search(name)), None)
    if found is None:
        return None
    kind, bandwidth = found
    return DeviceFacts(name=name, kind=kind, bandwidth=bandwidth, guessed=True, source=(GUESS,))


def _cpu(name: str) -> DeviceFacts:
    server, said = bool(_SERVER.search(name)), _CPU_CORES.search(name)
    cores = int(said[1]) if said else SERVER_CORES if server else DESKTOP_CORES
    bandwidth = min(max(cores * BYTES_PER_SECOND_OF_SERVER_CORE, DESKTOP_BYTES_PER_SECOND), MOST_BYTES_PER_SECOND)
    return DeviceFacts(
        name=name,
        kind=ChipKind.CPU,
        bandwidth=bandwidth if server else DESKTOP_BYTES_PER_SECOND,
        vector_operations=cores * OPERATIONS_PER_SECOND_OF_CORE,
        matrix_operations=cores * OPERATIONS_PER_SECOND_OF_CORE / 4,
        guessed=True,
        source=(GUESS,),
    )
