"""What chips can do: memory bandwidth and arithmetic, for predictions where nothing was measured yet."""

import re
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, cast

from pydantic import Field

from fleet_inventory.base import Frozen, InventoryError
from fleet_inventory.document import Document, read_document
from fleet_inventory.problems import listing, validate

_PATH = Path(__file__).parent / "data" / "chips.yaml"
# Words that drivers add and tables leave out.
_NOISE = {"nvidia", "geforce", "generation", "tm", "r"}

Figure = Annotated[float, Field(gt=0)]


class ChipKind(StrEnum):
    """The programming interface, and whether the device shares memory with the CPU (uma)."""

    CUDA = "cuda"
    CUDA_UMA = "cuda-uma"
    ROCM = "rocm"
    ROCM_UMA = "rocm-uma"
    METAL = "metal"
    CPU = "cpu"


class Chip(Frozen):
    """Published figures of one chip. GB are 10^9 bytes; None is unknown; `verified` says how far they were checked.

    Operations are dense: `fp32_tflops` of vector units, `fp16_tflops` of matrix units with 32-bit sums (half rate on
    GeForce cards), `int8_tops` of matrix units. `older_instructions_share` is the part of these rates that
    programs reach with the matrix instructions of the generation before (mma on Hopper, whose full rate needs wgmma).
    """

    name: str
    kind: ChipKind
    gpu_cores: int | None = None
    device_names: tuple[str, ...] = ()
    memory_gb: tuple[int, int]  # smallest and largest that is sold
    bandwidth_gb_per_second: Figure
    fp32_tflops: Figure | None = None
    fp16_tflops: Figure | None = None
    int8_tops: Figure | None = None
    older_instructions_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    note: str = ""
    source: tuple[str, ...]
    verified: str


class _ChipsFile(Frozen):
    chips: tuple[Chip, ...]


@cache
def load_chips() -> tuple[Chip, ...]:
    """All chips, in the order of the file. Raises InventoryError when the shipped file is damaged."""
    read = read_document(_PATH, lambda path: path[-1:] == ("verified",))
    document = Document(path=_PATH, data={"chips": read.data}, lines=read.lines, duplicates=read.duplicates)
    value, problems = validate(_ChipsFile, document)
    if problems or value is None:
        raise InventoryError(listing(problems))
    return cast(_ChipsFile, value).chips


def find_chip(device_name: str, gpu_cores: int | None = None) -> Chip | None:
    """The chip that a driver calls `device_name` ("NVIDIA GeForce RTX 4090", "Apple M4 Max"), or None.

    Where one name was sold with several core counts, `gpu_cores` decides; without it the slowest is taken, so that
    a prediction rather promises too little.
    """
    wanted = _words(device_name)
    found = [chip for chip in load_chips() if wanted in (_words(chip.name), *map(_words, chip.device_names))]
    exact = [chip for chip in found if gpu_cores is not None and chip.gpu_cores == gpu_cores]
    return min(exact or found, key=lambda chip: chip.bandwidth_gb_per_second, default=None)


def _words(name: str) -> tuple[str, ...]:
    return tuple(word for word in re.findall(r"[a-z0-9]+", name.lower()) if word not in _NOISE)
