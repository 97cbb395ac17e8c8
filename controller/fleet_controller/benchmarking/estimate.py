"""How long a cell will take: as earlier runs of it did, else a guess that says what it rests on."""

import math

from fleet_controller.benchmarking.suites import Part
from fleet_controller.domain.base import Frozen

# Generating a token reads the weights once, at about 60 % of the published bandwidth (llama.cpp in the lab notes).
BANDWIDTH_SHARE = 0.6
# Where nobody published the memory's speed: two channels of DDR4.
UNKNOWN_BANDWIDTH_GB_PER_SECOND = 20.0
# Prefill against decode in the lab notes: 40 to 110 times on the RTX 4090, 10 on the M4.
PREFILL_FACTOR = 10.0
LOAD_BYTES_PER_SECOND = 1e9
DOWNLOAD_BYTES_PER_SECOND = 50e6
INSTALL_SECONDS = 300.0
OVERHEAD_SECONDS = 5.0


class Estimate(Frozen):
    seconds: float
    basis: str
    is_guess: bool = True


def from_earlier(seconds: float, runs: int, when: str) -> Estimate:
    return Estimate(seconds=seconds * runs, basis=f"as measured on {when}", is_guess=False)


def guess(
    part: Part,
    weights_bytes: int,
    bandwidth_gb_per_second: float | None,
    runs: int,
    download_bytes: int = 0,
    install: bool = False,
) -> Estimate:
    """Decode at a share of the memory's bandwidth, prefill a fixed factor faster; installs and downloads on top."""
    bandwidth = bandwidth_gb_per_second or UNKNOWN_BANDWIDTH_GB_PER_SECOND
    decode = BANDWIDTH_SHARE * bandwidth * 1e9 / max(weights_bytes, 1)
    prefill = decode * PREFILL_FACTOR
    repetitions = part.repetitions + 1
    users = sum(part.concurrency)
    one = sum((part.prompt_tokens + 2 * depth) / prefill + part.generation_tokens / decode for depth in part.depths)
    seconds = runs * (one * repetitions * users + OVERHEAD_SECONDS) + weights_bytes / LOAD_BYTES_PER_SECOND
    seconds += download_bytes / DOWNLOAD_BYTES_PER_SECOND + (INSTALL_SECONDS if install else 0.0)
    known = "of the chip's" if bandwidth_gb_per_second else "of an assumed"
    basis = f"guess: decode at {BANDWIDTH_SHARE:.0%} {known} {bandwidth:.0f} GB/s, prefill {PREFILL_FACTOR:.0f}x"
    basis += ", 50 MB/s to download" if download_bytes else ""
    basis += f", {INSTALL_SECONDS / 60:.0f} min to install" if install else ""
    return Estimate(seconds=float(math.ceil(seconds)), basis=basis)
