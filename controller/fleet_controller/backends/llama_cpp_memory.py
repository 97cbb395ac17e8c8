"""How llama-server spends memory: slots, batches, and what its version and its arguments change. Pure."""

import re
from collections.abc import Iterable, Sequence

from fleet_controller.backends.base import MemoryUse
from fleet_controller.backends.options import EngineOptions
from fleet_controller.domain.base import Frozen

ENGINE = "llama.cpp"
# llama-server's own choice of slots when --parallel is not given; they share one cache then.
AUTOMATIC_SLOTS = 4
# --fit leaves that much free on each device (--fit-target's default, llama-server --help).
FIT_TARGET_BYTES = 1024 * 1024**2
CPU_RESERVE_BYTES = 512 * 1024**2
# Estimates are within 5 % of what was measured (docs/memory_fit.md); a larger reserve would refuse what fits.
CPU_RESERVE_SHARE = 0.02
# n_ubatch (llama-server --help).
MICRO_BATCH_TOKENS = 512
# Cells come in multiples (llama-context.cpp).
PADDING_TOKENS = 256
# The program and its libraries, resident without a model, of a build for the CPU (docs/memory_fit.md).
PROCESS_BYTES = 18 * 1024**2
# Driver context, kernels, cuBLAS and scratch of one process on one device.
CUDA_CONTEXT_BYTES = 512 * 1024**2
# Rows of logits were one for every token of a batch until outputs were limited to the slots' in June 2026 (ggml-org/
# llama.cpp, pull request 23861). Which build that was is not known exactly: from this one on it is surely so.
OUTPUTS_LIMITED_BUILD = 9600
_BATCH = ("-ub", "--ubatch-size")
_FLASH = ("-fa", "--flash-attn")
_TARGET = ("-fitt", "--fit-target")
_DRAFT = ("--draft-max", "--draft", "--draft-n", "--spec-draft-n-max")
_DEFAULT_DRAFT_TOKENS = 3  # --spec-draft-n-max of llama-server --help
_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|compute|output) buffer size =\s*([\d.]+) MiB")


def llama_cpp_memory(context_tokens: int, max_parallel: int, on_gpu: bool) -> MemoryUse:
    """`context_tokens` are those of one request; with `max_parallel` each slot has so many of its own."""
    slots = max(max_parallel, 1)
    return MemoryUse(
        context_tokens=-(-context_tokens // PADDING_TOKENS) * PADDING_TOKENS * slots,
        sequences=max_parallel or AUTOMATIC_SLOTS,
        unified_cache=max_parallel <= 1,
        reserve_bytes_per_device=FIT_TARGET_BYTES if on_gpu else CPU_RESERVE_BYTES,
        reserve_share=0.0 if on_gpu else CPU_RESERVE_SHARE,
        engine=ENGINE,
        on_gpu=on_gpu,
        micro_batch_tokens=MICRO_BATCH_TOKENS,
        process_bytes=PROCESS_BYTES,
        context_bytes_per_device=CUDA_CONTEXT_BYTES if on_gpu else 0,
    )


def tuned_memory(use: MemoryUse, version: str, arguments: Sequence[str], options: EngineOptions) -> MemoryUse:
    """The use by this version with these arguments and options."""
    changes: dict[str, object] = {}
    draft = _draft_tokens(arguments)
    if draft:
        changes |= {"uses_nextn": True, "rollback_states": draft}
    if limits_outputs(version):
        changes["output_rows"] = use.sequences * (1 + draft)
    if batch := _value(arguments, _BATCH):
        changes["micro_batch_tokens"] = int(batch)
    if (options.flash_attention or _value(arguments, _FLASH)) == "off":
        changes["flash_attention"] = False
    if use.on_gpu and (target := _value(arguments, _TARGET)):
        changes["reserve_bytes_per_device"] = int(target.split(",")[0]) * 1024**2
    return use.model_copy(update=changes)


def limits_outputs(version: str) -> bool:
    """Whether a build reserves logits for its slots only; a version that tells no build is taken for an old one.

    Versions such as 0.6.0 came later than that.
    """
    if re.match(r"\d+\.\d+\.\d+", version):
        return True
    found = re.search(r"b(\d+)", version) or re.search(r"==(\d+)\.", version)
    return found is not None and int(found[1]) >= OUTPUTS_LIMITED_BUILD


def _draft_tokens(arguments: Sequence[str]) -> int:
    """How many tokens an MTP head drafts at once; 0 without one."""
    if not any("mtp" in word for word in arguments):
        return 0
    return int(_value(arguments, _DRAFT) or _DEFAULT_DRAFT_TOKENS)


def _value(arguments: Sequence[str], names: Sequence[str]) -> str:
    """The last value given for an option, "" where it is not given."""
    found = ""
    for position, word in enumerate(arguments):
        name, _, value = word.partition("=")
        if name in names:
            found = value or next(iter(arguments[position + 1 :]), "")
    return found


class Buffer(Frozen):
    """One buffer that llama.cpp reports: `kind` is model, KV, RS (recurrent state), compute or output."""

    place: str
    kind: str
    size_bytes: int

    @property
    def on_device(self) -> bool:
        """Whether it lies on a GPU: CUDA0 does, CUDA_Host and the CPU's own do not."""
        return not self.place.startswith(("CPU", "Host")) and not self.place.endswith("_Host")


def parse_buffers(log: str) -> tuple[Buffer, ...]:
    """The buffers in a server's log. Builds since mid-2026 print them with `--log-verbosity 4` only."""
    found = _BUFFER.findall(log)
    return tuple(Buffer(place=place, kind=kind, size_bytes=round(float(size) * 2**20)) for place, kind, size in found)


def needed_bytes(buffers: Iterable[Buffer]) -> int:
    """What buffers in the host's memory need together: where weights were copied into another order (CPU_REPACK), the
    mapped file has them too, and those pages can be dropped.
    """
    sizes = {"mapped": 0, "repacked": 0, "other": 0}
    for buffer in buffers:
        place = "mapped" if buffer.place.endswith("_Mapped") else "repacked" if "REPACK" in buffer.place else "other"
        sizes[place] += buffer.size_bytes
    return max(sizes["mapped"], sizes["repacked"]) + sizes["other"]
