"""What is believed before anything was measured, each with its source."""

import math
from dataclasses import dataclass

from fleet_controller.choosing.least_squares import Prior

# ("decode.layer",) is shared by all engines; ("decode.layer", "llama.cpp/cuda") is what one differs from it.
Parameter = tuple[str, ...]


@dataclass(frozen=True)
class Belief:
    """A factor or a time in seconds: what is typical, how sure that is, and how far things differ from it.

    `spread` and `apart` are one standard deviation of the logarithm, as a factor: of what all share, and of what one
    engine, device, version, quantization or architecture differs from it. None: there is no such parameter.
    """

    typical: float
    spread: float | None
    apart: float | None
    source: str


def _effect(apart: float, source: str) -> Belief:
    """A factor around 1 that nothing is shared of."""
    return Belief(1.0, None, apart, source)


GEMM_SOURCE = "matrix units run at 30 to 60 % of their data sheet in large products (llama.cpp pull request 7676)"
BELIEFS: dict[str, Belief] = {
    "decode.waste": Belief(
        0.2,
        1.5,
        1.5,
        "streaming reads reach 80 to 85 % of the data sheet (rocm_bandwidth_test on 8060S: 212 of 256 GB/s)",
    ),
    "decode.unpacking": Belief(
        10.0,
        1.4,
        1.3,
        "estimate: a weight is shifted, masked, scaled, multiplied and added: about ten operations of vector units",
    ),
    "decode.bfloat": _effect(1.5, "bfloat16 weights go through other kernels than quantized ones"),
    "decode.experts": Belief(
        2.0, 1.5, None, "estimate: experts are read in pieces, behind a choice that must be made first"
    ),
    "decode.layer": Belief(60e-6, 1.6, 1.6, "estimate: about 20 kernels a layer at 3 µs each, behind one another"),
    "decode.layer_experts": Belief(1.4, 1.3, None, "estimate: router, choice and gathering are more kernels a layer"),
    "decode.cache": Belief(
        1.8, 1.4, 1.5, "estimate: attention kernels at one token read the cache at half the bandwidth"
    ),
    "decode.scores": Belief(
        4.0,
        1.6,
        2.0,
        "estimate: at one token attention keeps vector units busy for a quarter of the time; kernels that take query "
        "heads of one key together are 3 to 8 times as fast as those that do not (llama.cpp pull request 18938, "
        "flash-attention pull request 2186)",
    ),
    "decode.latent_copy": Belief(
        1.25,
        1.5,
        1.2,
        "without flash attention llama.cpp transposes the latent cache each token (ik_llama.cpp pull request 240): "
        "each value of 2 bytes costs a sector of 32 bytes (CUDA C++ best practices); estimate",
    ),
    "decode.state": Belief(2.0, 1.5, 1.3, "estimate: recurrent states are read and written at half the bandwidth"),
    "decode.request": Belief(500e-6, 1.8, 1.3, "estimate: sampling and HTTP of a server for every token"),
    "decode.speculation": Belief(1.0, 1.3, 1.3, "estimate: speculation gains or loses: drafts cost what they may save"),
    "prefill.products": Belief(2.2, 1.3, 1.3, GEMM_SOURCE),
    "prefill.bfloat": _effect(1.6, "bfloat16 weights go through other kernels than quantized ones"),
    "prefill.experts": Belief(
        1.5, 1.3, 1.4, "estimate: each expert sees few tokens of a micro-batch, so its products are small"
    ),
    "prefill.part_filled": Belief(
        0.5, 1.5, None, "estimate: the last tile of an expert's tokens is half empty (llama.cpp pull request 15525)"
    ),
    "prefill.scores": Belief(5.0, 1.5, 1.5, "estimate: flash attention runs at a fifth of the matrix units"),
    "prefill.unpacking": Belief(
        1.0, 1.4, 1.3, "two scales a block cost operations (llama.cpp pull requests 7676, 7860 and 7921)"
    ),
    "prefill.softmax": Belief(
        300.0,
        3.0,
        2.0,
        "estimate: each score is scaled, masked, raised, summed and rounded by vector units, in between matrix units "
        " (FlashAttention-2, https://arxiv.org/abs/2307.08691, section 3.1)",
    ),
    "prefill.cache": Belief(
        1.25, 1.5, 1.5, "estimate: flash attention reads the cache once for each tile of 64 tokens"
    ),
    "prefill.score_traffic": Belief(
        1.25, 1.4, 1.3, "without flash attention scores are written and read four times as 32-bit numbers"
    ),
    "prefill.weights": Belief(
        1.25, 1.2, 1.2, "estimate: every micro-batch reads the weights at the bandwidth of decode"
    ),
    "prefill.layer": Belief(200e-6, 2.0, 1.6, "estimate: about 20 kernels a layer for each micro-batch"),
    "prefill.layer_experts": Belief(2.0, 1.5, 1.2, "estimate: router, choice and gathering are more kernels a layer"),
    "prefill.request": Belief(40e-3, 2.0, 1.3, "estimate: tokenizing and HTTP of one request"),
    "decode.device": _effect(1.08, "clocks, coolers and drivers of one device"),
    "prefill.device": _effect(1.25, "clocks, coolers and power limits of one device"),
    "decode.driver": _effect(1.05, "one driver's compiler"),
    "decode.unknown_device": _effect(2.0, "neither memory nor arithmetic of the device is in the inventory: a guess"),
    "prefill.unknown_device": _effect(2.0, "the chip's arithmetic is not in the inventory"),
    "decode.version": _effect(1.05, "one version of an engine"),
    "prefill.version": _effect(1.12, "one version of an engine"),
    "decode.layer_version": _effect(1.3, "kernels are fused, so that a later version starts fewer"),
    "prefill.layer_version": _effect(1.3, "kernels are fused, so that a later version starts fewer"),
    "decode.layer_device": _effect(1.2, "how fast a host's CPU and driver start kernels"),
    "prefill.layer_device": _effect(1.2, "how fast a host's CPU and driver start kernels"),
    "decode.quantization": _effect(1.04, "kernels that suit one quantization more than another"),
    "prefill.quantization": _effect(1.1, "kernels that suit one quantization more than another"),
    "decode.architecture": _effect(1.06, "kernels that suit one architecture more than another"),
    "prefill.architecture": _effect(1.3, "kernels that suit one architecture more than another"),
}
# How far one row is from the model where everything else is known, as a factor.
ROW_DEVIATION = {"decode": math.log(1.06), "prefill": math.log(1.15)}
# Matrix operations/s for each byte/s of bandwidth where a chip's arithmetic is not known.
OPERATIONS_PER_BYTE = {"cuda": 220.0, "cuda-uma": 400.0, "rocm": 130.0, "rocm-uma": 230.0, "metal": 33.0, "cpu": 15.0}


def prior_of(parameter: Parameter) -> Prior:
    """The prior of a shared parameter (one word) or of what one thing differs from it (more words)."""
    belief = BELIEFS[parameter[0]]
    deviation = belief.spread if len(parameter) == 1 else belief.apart
    if deviation is None:
        raise ValueError(f"there is no parameter {' '.join(parameter)}")
    return Prior(math.log(belief.typical) if len(parameter) == 1 else 0.0, math.log(deviation))


# Matrix operations for one of the vector units where only the former are known: Ampere, Ada, RDNA 3, Apple M1 to M4.
# A CPU's vector units compute all: its dot products of 8-bit integers four times as fast as its 32-bit products.
MATRIX_PER_VECTOR = {"cuda": 4.0, "cuda-uma": 4.0, "rocm": 2.0, "rocm-uma": 2.0, "metal": 1.0, "cpu": 0.25}
