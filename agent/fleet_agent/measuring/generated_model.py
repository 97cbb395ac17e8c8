"""A language model made up on the spot, to measure a machine with: real shapes, valid blocks, random weights.

Speed depends on shapes and types, hardly on values, so a file of random blocks is as good as a download. The blocks of
a type are drawn once and written again and again: a gigabyte takes as long as the disk takes. The architecture is
llama.cpp's "qwen3" (dense, grouped queries); there is no tokenizer ("no_vocab"), since llama-bench draws token numbers.

Formats: GGUF version 3 (ggml docs/gguf.md); blocks as in ggml-common.h.
"""

import contextlib
import random
import struct
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from fleet_agent.jobs.errors import JobProblem, SpecProblem, Stopped, disk_full
from fleet_agent.jobs.model import GeneratedModel
from fleet_agent.probes import memory
from fleet_agent.probes.model import ProbeContext
from fleet_agent.steps.context import StepContext
from fleet_agent.steps.output import free_bytes

FOLDER = "fleet-generated"  # beside the models, where a large disk is
ALIGNMENT = 32
MOST_BYTES = 8 << 30
PIECE_BYTES = 4 << 20
CONTEXT_TOKENS = 1 << 20
LEFT_OVER_SECONDS = 24 * 3600.0
# What the engine takes beside the weights, and what must stay for others: of the memory that is free.
MEMORY_SHARE = 0.6
SEED = 20261124

# Number of the type in a file, values of a block, bytes of a block.
TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144), "Q6_K": (14, 256, 210)}
# The type of most matrices, and of those that llama-quantize gives more bits.
QUANTIZATIONS = {"F16": ("F16", "F16"), "Q8_0": ("Q8_0", "Q8_0"), "Q4_K_M": ("Q4_K", "Q6_K")}
_UINT32, _FLOAT32, _STRING = 4, 6, 8

Tensor = tuple[str, tuple[int, ...], str]


def check(model: GeneratedModel) -> None:
    """Raises SpecProblem for a model that could not be written, or would be too large for its purpose."""
    sizes = (model.layers, model.heads, model.key_value_heads, model.head_size, model.vocabulary_size)
    if min(sizes) < 1 or max(sizes) > 1 << 20 or model.layers > 512:
        raise SpecProblem("a generated model needs layers, heads and a vocabulary")
    widths = (model.hidden_size, model.feed_forward_size, model.heads * model.head_size)
    if any(width < 256 or width % 256 for width in widths):
        raise SpecProblem("the widths of a generated model are multiples of 256")
    if model.heads % model.key_value_heads:
        raise SpecProblem("query heads are shared evenly by key-value heads")
    if model.quantization not in QUANTIZATIONS:
        raise SpecProblem(f"generated models are {', '.join(QUANTIZATIONS)}, not {model.quantization!r}")
    if (size := sum(map(tensor_bytes, tensors(model)))) > MOST_BYTES:
        raise SpecProblem(f"a generated model of {size} bytes is more than {MOST_BYTES}")


@contextlib.asynccontextmanager
async def generated_model(model: GeneratedModel, context: StepContext) -> AsyncIterator[Path]:
    """The model's file, which is gone after the block.

    Raises JobProblem "disk-full" and "does-not-fit" before anything is written.
    """
    folder = context.layout.hf_home / FOLDER
    path = folder / f"{context.job.job_id}.gguf"
    try:
        await context.in_thread(write, model, path, context)
        yield path
    finally:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another bench's file is in it
            folder.rmdir()


def write(model: GeneratedModel, path: Path, context: StepContext) -> None:
    """Raises JobProblem where there is no room, and Stopped once cancelled."""
    size = sum(map(tensor_bytes, tensors(model)))
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_over(path.parent)
    free = free_bytes(path.parent)
    if free is not None and size > free:
        raise disk_full(path.parent, size, free)
    available = memory.read(ProbeContext(context.layout, context.configuration)).available_bytes
    if available is not None and size > MEMORY_SHARE * available:
        message = f"a model of {size / 1e9:.1f} GB does not fit: {available / 1e9:.1f} GB of memory are free"
        raise JobProblem("does-not-fit", message, "stop something on the host, and repeat the command")
    done = 0
    with path.open("wb") as stream:
        for piece in pieces(model):
            if context.cancelled.is_set():
                raise Stopped
            stream.write(piece)
            done += len(piece)
            context.progress(done, max(size, done), "bytes", "a model with random weights")


def _remove_left_over(folder: Path) -> None:
    """Files of measurements that a lost machine never ended."""
    for path in folder.glob("*.gguf"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFT_OVER_SECONDS:
                path.unlink()


def tensors(model: GeneratedModel) -> list[Tensor]:
    """(name, dimensions, type) in the order of the file."""
    most, better = QUANTIZATIONS[model.quantization]
    width, queries = model.hidden_size, model.heads * model.head_size
    keys = model.key_value_heads * model.head_size
    found: list[Tensor] = [
        ("token_embd.weight", (width, model.vocabulary_size), most),
        ("output_norm.weight", (width,), "F32"),
        ("output.weight", (width, model.vocabulary_size), better),
    ]
    for layer in range(model.layers):
        high = better if has_more_bits(layer, model.layers) else most
        block: list[Tensor] = [
            ("attn_norm", (width,), "F32"),
            ("attn_q", (width, queries), most),
            ("attn_k", (width, keys), most),
            ("attn_v", (width, keys), high),
            ("attn_q_norm", (model.head_size,), "F32"),
            ("attn_k_norm", (model.head_size,), "F32"),
            ("attn_output", (queries, width), most),
            ("ffn_norm", (width,), "F32"),
            ("ffn_gate", (width, model.feed_forward_size), most),
            ("ffn_up", (width, model.feed_forward_size), most),
            ("ffn_down", (model.feed_forward_size, width), high),
        ]
        found += [(f"blk.{layer}.{name}.weight", dimensions, kind) for name, dimensions, kind in block]
    return found


def has_more_bits(layer: int, layers: int) -> bool:
    """Whether *_K_M gives a layer's value and down projections more bits (llama.cpp, use_more_bits)."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor with its padding; rows are whole blocks."""
    _, dimensions, kind = tensor
    _, values, size = TYPES[kind]
    count = 1
    for dimension in dimensions:
        count *= dimension
    return -(-count // values * size // ALIGNMENT) * ALIGNMENT


def pieces(model: GeneratedModel) -> Iterator[bytes]:
    """The file, some megabytes at a time."""
    found = tensors(model)
    head = _header(model, found)
    yield head + bytes(-len(head) % ALIGNMENT)
    drawn = {kind: _blocks(kind) for kind in sorted({kind for _, _, kind in found})}
    for tensor in found:
        left, piece = tensor_bytes(tensor), drawn[tensor[2]]
        while left:
            yield piece if left >= len(piece) else piece[:left]
            left -= min(left, len(piece))


def _header(model: GeneratedModel, found: list[Tensor]) -> bytes:
    values: dict[str, int | float | str] = {
        "general.architecture": "qwen3",
        "general.name": "generated",
        "tokenizer.ggml.model": "no_vocab",
        "qwen3.vocab_size": model.vocabulary_size,
        "qwen3.context_length": CONTEXT_TOKENS,
        "qwen3.embedding_length": model.hidden_size,
        "qwen3.block_count": model.layers,
        "qwen3.feed_forward_length": model.feed_forward_size,
        "qwen3.attention.head_count": model.heads,
        "qwen3.attention.head_count_kv": model.key_value_heads,
        "qwen3.attention.key_length": model.head_size,
        "qwen3.attention.value_length": model.head_size,
        "qwen3.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen3.rope.freq_base": 1e6,
    }
    head = b"GGUF" + struct.pack("<IQQ", 3, len(found), len(values))
    head += b"".join(_text(name) + _value(value) for name, value in values.items())
    offset = 0
    for tensor in found:
        name, dimensions, kind = tensor
        head += _text(name) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        head += struct.pack("<IQ", TYPES[kind][0], offset)
        offset += tensor_bytes(tensor)
    return head


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: int | float | str) -> bytes:
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    return struct.pack("<I", _STRING) + _text(value)


def _blocks(kind: str) -> bytes:
    """A piece of valid blocks: random quanta, with a scale so small that activations stay finite and not denormal."""
    if kind == "F32":  # norms
        return struct.pack("<f", 1.0) * 4096
    generator = random.Random(f"{SEED} {kind}")
    _, _, size = TYPES[kind]
    count = PIECE_BYTES // (size * ALIGNMENT) * ALIGNMENT  # whole blocks, and aligned
    if kind == "F16":
        return _halves(generator, count)
    scale = struct.pack("<e", 2.0**-10)
    bodies = generator.randbytes(count * size)
    blocks = (bodies[start : start + size] for start in range(0, count * size, size))
    if kind == "Q8_0":  # scale, 32 quanta
        return b"".join(scale + block[2:] for block in blocks)
    if kind == "Q4_K":  # scale, scale of the minima, 12 bytes of both, 128 bytes of quanta
        return b"".join(scale + scale + block[4:] for block in blocks)
    return b"".join(block[:-2] + scale for block in blocks)  # Q6_K: quanta, 16 scales, scale


def _halves(generator: random.Random, count: int) -> bytes:
    """16-bit numbers of random sign between 2^-7 and 2^-6, made without a loop over them."""
    keep = int.from_bytes(b"\xff\x83" * count, "little")  # the sign, and the ten bits of the mantissa
    exponents = int.from_bytes(struct.pack("<H", 8 << 10) * count, "little")
    bits = int.from_bytes(generator.randbytes(2 * count), "little") & keep | exponents
    return bits.to_bytes(2 * count, "little")
