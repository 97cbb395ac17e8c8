"""GGUF files of real architectures in any size, made in a moment: what memory is measured with.

Memory depends on shapes and types, not on values, so the tensors' data are a hole in a sparse file (all zeros), and a
model of 20 GB is written in a second. With the standard library alone: a machine without network makes its own.

Shapes: dense (Qwen3), mixture of experts (Qwen3 MoE), hybrid linear attention, dense and with experts (Qwen3.5), and
multi-head latent attention (GLM-4.7-Flash, llama.cpp's deepseek2). `scale` takes layers, width and vocabulary down.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

ALIGNMENT = 32
# ggml's numbers of types, with the values and bytes of a block (ggml.h, ggml-common.h).
TYPES = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2), "Q4_0": (2, 32, 18), "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
}  # fmt: skip

Value = int | float | bool | str | list[int] | list[str]


@dataclass(frozen=True)
class Shape:
    """Sizes of one model. `experts` 0 = dense; `linear_heads` (keys, values) 0 = no linear attention."""

    name: str
    architecture: str
    layers: int
    width: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_length: int
    feed_forward: int
    context: int = 262144
    experts: int = 0
    experts_used: int = 0
    expert_feed_forward: int = 0
    linear_key_heads: int = 0
    linear_value_heads: int = 0
    tied: bool = False
    nextn_layers: int = 0


QWEN35 = {"architecture": "qwen35", "vocabulary": 248320, "head_length": 256}
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("qwen3-8b", "qwen3", 36, 4096, 151936, 32, 8, 128, 12288, 40960),
        Shape("qwen3-30b-a3b", "qwen3moe", 48, 2048, 151936, 32, 4, 128, 6144, 40960, 128, 8, 768),
        Shape("qwen3.5-4b", "qwen35", 32, 2560, 248320, 16, 4, 256, 9216, linear_key_heads=16,
              linear_value_heads=32, tied=True),
        Shape("qwen3.5-9b", "qwen35", 32, 4096, 248320, 16, 4, 256, 12288, linear_key_heads=16, linear_value_heads=32),
        Shape("qwen3.5-27b", "qwen35", 64, 5120, 248320, 24, 4, 256, 17408, linear_key_heads=16, linear_value_heads=48),
        Shape("qwen3.5-35b-a3b", "qwen35moe", 40, 2048, 248320, 16, 2, 256, 512, experts=256, experts_used=8,
              expert_feed_forward=512, linear_key_heads=16, linear_value_heads=32),
        Shape("glm-4.7-flash", "deepseek2", 47, 2048, 154880, 20, 1, 256, 10240, 202752, 64, 4, 1536),
    )
}  # fmt: skip


def scaled(shape: Shape, divisor: int) -> Shape:
    """The same architecture with a part of its layers, vocabulary, experts and feed-forward width."""
    return replace(
        shape,
        name=f"{shape.name}-div{divisor}",
        layers=max(shape.layers // divisor // 4 * 4, 4),
        vocabulary=shape.vocabulary // divisor // 256 * 256,
        feed_forward=max(shape.feed_forward // divisor // 256 * 256, 512),
        experts=shape.experts // divisor if shape.experts // divisor > shape.experts_used else shape.experts and 16,
    )


@dataclass
class _File:
    """The parts of a GGUF file as they are collected: (name, dimensions, type) of each tensor."""

    shape: Shape
    quantization: str
    values: dict[str, Value] = field(default_factory=dict)
    tensors: list[tuple[str, tuple[int, ...], str]] = field(default_factory=list)

    def add(self, name: str, *dimensions: int, kind: str = "") -> None:
        self.tensors.append((name, dimensions, kind or self.quantization))

    def norm(self, name: str, *dimensions: int) -> None:
        self.tensors.append((name, dimensions, "F32"))


# The types that a "Q4_K_M" mixes in where more precision pays: half of the value and down projections, and the head.
_BETTER = {"Q2_K": "Q6_K", "Q3_K": "Q6_K", "Q4_K": "Q6_K", "Q5_K": "Q6_K"}


def write_gguf(path: Path, shape: Shape, quantization: str) -> int:
    """Writes the model and gives back its size in bytes. `quantization` is a key of TYPES."""
    file = _File(shape, quantization)
    file.values = {
        "general.architecture": shape.architecture,
        "general.name": shape.name,
        **_tokenizer(shape.vocabulary),
        **{f"{shape.architecture}.{key}": value for key, value in _values(shape).items()},
    }
    _tensors(file)
    return _write(path, file)


def _tokenizer(size: int) -> dict[str, Value]:
    """A byte-level vocabulary of the real size: it takes memory of its own, and no server decodes without one."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]
    words = [f"word{number}" for number in range(size - len(alphabet) - 1)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": [*alphabet, *words, "<|end|>"],
        "tokenizer.ggml.token_type": [1] * (size - 1) + [3],
        "tokenizer.ggml.merges": ["w o"],
        "tokenizer.ggml.eos_token_id": size - 1,
    }


def _values(shape: Shape) -> dict[str, Value]:
    values: dict[str, Value] = {
        "vocab_size": shape.vocabulary,
        "block_count": shape.layers + shape.nextn_layers,
        "context_length": shape.context,
        "embedding_length": shape.width,
        "feed_forward_length": shape.feed_forward,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_length,
        "attention.value_length": shape.head_length,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e6,
    }
    if shape.nextn_layers:
        values["nextn_predict_layers"] = shape.nextn_layers
    if shape.experts:
        values |= {
            "expert_count": shape.experts,
            "expert_used_count": shape.experts_used,
            "expert_feed_forward_length": shape.expert_feed_forward,
        }
    if shape.architecture.startswith("qwen35"):
        values |= {
            "rope.dimension_count": 64,
            "rope.dimension_sections": [11, 11, 10, 0],
            "ssm.conv_kernel": 4,
            "ssm.inner_size": shape.linear_value_heads * 128,
            "ssm.state_size": 128,
            "ssm.time_step_rank": shape.linear_value_heads,
            "ssm.group_count": shape.linear_key_heads,
            "full_attention_interval": 4,
        }
        if shape.experts:
            values["expert_shared_feed_forward_length"] = shape.expert_feed_forward
    if shape.architecture == "deepseek2":
        values |= {
            "attention.key_length": 576,
            "attention.value_length": 512,
            "attention.key_length_mla": 256,
            "attention.value_length_mla": 256,
            "attention.q_lora_rank": 768,
            "attention.kv_lora_rank": 512,
            "rope.dimension_count": 64,
            "expert_shared_count": 1,
            "expert_weights_scale": 1.8,
            "expert_weights_norm": True,
            "expert_gating_func": 2,
            "leading_dense_block_count": 1,
        }
    return values


def _tensors(file: _File) -> None:
    shape = file.shape
    better = _BETTER.get(file.quantization, file.quantization)
    file.add("token_embd.weight", shape.width, shape.vocabulary, kind=better if shape.tied else "")
    file.norm("output_norm.weight", shape.width)
    if not shape.tied:
        file.add("output.weight", shape.width, shape.vocabulary, kind=better)
    for layer in range(shape.layers + shape.nextn_layers):
        prefix, high = f"blk.{layer}.", better if layer % 2 == 0 else ""
        file.norm(prefix + "attn_norm.weight", shape.width)
        if shape.architecture == "deepseek2":
            _latent_attention(file, prefix)
        elif shape.linear_value_heads and layer < shape.layers and (layer + 1) % 4:
            _linear_attention(file, prefix)
        else:
            _attention(file, prefix, high)
        after = "post_attention_norm" if shape.linear_value_heads else "ffn_norm"
        file.norm(f"{prefix}{after}.weight", shape.width)
        if shape.experts and not (shape.architecture == "deepseek2" and layer == 0):
            _experts(file, prefix, high)
        else:
            file.add(prefix + "ffn_gate.weight", shape.width, shape.feed_forward)
            file.add(prefix + "ffn_up.weight", shape.width, shape.feed_forward)
            file.add(prefix + "ffn_down.weight", shape.feed_forward, shape.width, kind=high)
        if layer >= shape.layers:
            file.add(prefix + "nextn.eh_proj.weight", 2 * shape.width, shape.width)
            file.norm(prefix + "nextn.enorm.weight", shape.width)
            file.norm(prefix + "nextn.hnorm.weight", shape.width)


def _attention(file: _File, prefix: str, high: str) -> None:
    shape = file.shape
    gated = 2 if shape.linear_value_heads else 1  # Qwen3.5 computes a gate beside the queries
    queries, keys = shape.heads * shape.head_length, shape.kv_heads * shape.head_length
    file.add(prefix + "attn_q.weight", shape.width, queries * gated)
    file.add(prefix + "attn_k.weight", shape.width, keys)
    file.add(prefix + "attn_v.weight", shape.width, keys, kind=high)
    file.add(prefix + "attn_output.weight", queries, shape.width)
    file.norm(prefix + "attn_q_norm.weight", shape.head_length)
    file.norm(prefix + "attn_k_norm.weight", shape.head_length)


def _linear_attention(file: _File, prefix: str) -> None:
    shape = file.shape
    keys, values = shape.linear_key_heads * 128, shape.linear_value_heads * 128
    file.add(prefix + "attn_qkv.weight", shape.width, 2 * keys + values)
    file.add(prefix + "attn_gate.weight", shape.width, values)
    file.norm(prefix + "ssm_conv1d.weight", 4, 2 * keys + values)
    file.norm(prefix + "ssm_dt.bias", shape.linear_value_heads)
    file.norm(prefix + "ssm_a", shape.linear_value_heads)
    file.norm(prefix + "ssm_beta.weight", shape.width, shape.linear_value_heads)
    file.norm(prefix + "ssm_alpha.weight", shape.width, shape.linear_value_heads)
    file.norm(prefix + "ssm_norm.weight", 128)
    file.add(prefix + "ssm_out.weight", values, shape.width)


def _latent_attention(file: _File, prefix: str) -> None:
    shape = file.shape
    exact = "Q8_0" if file.quantization not in ("F16", "BF16", "F32") else file.quantization
    file.norm(prefix + "attn_q_a_norm.weight", 768)
    file.norm(prefix + "attn_kv_a_norm.weight", 512)
    file.add(prefix + "attn_q_a.weight", shape.width, 768)
    file.add(prefix + "attn_q_b.weight", 768, shape.heads * 256)
    file.add(prefix + "attn_kv_a_mqa.weight", shape.width, 576, kind=exact)
    file.add(prefix + "attn_k_b.weight", 192, 512, shape.heads, kind=exact)
    file.add(prefix + "attn_v_b.weight", 512, 256, shape.heads, kind=exact)
    file.add(prefix + "attn_output.weight", shape.heads * 256, shape.width)


def _experts(file: _File, prefix: str, high: str) -> None:
    shape = file.shape
    width, inner, experts = shape.width, shape.expert_feed_forward, shape.experts
    file.norm(prefix + "ffn_gate_inp.weight", width, experts)
    file.add(prefix + "ffn_gate_exps.weight", width, inner, experts)
    file.add(prefix + "ffn_up_exps.weight", width, inner, experts)
    file.add(prefix + "ffn_down_exps.weight", inner, width, experts, kind=high)
    if shape.architecture == "deepseek2":
        file.norm(prefix + "exp_probs_b.bias", experts)
    if shape.architecture == "qwen35moe":
        file.norm(prefix + "ffn_gate_inp_shexp.weight", width)
    if shape.architecture in ("qwen35moe", "deepseek2"):
        file.add(prefix + "ffn_gate_shexp.weight", width, inner)
        file.add(prefix + "ffn_up_shexp.weight", width, inner)
        file.add(prefix + "ffn_down_shexp.weight", inner, width)


def tensor_bytes(dimensions: tuple[int, ...], kind: str) -> int:
    """Bytes of a tensor: rows are whole blocks of their type."""
    _, values, size = TYPES[kind]
    rows = 1
    for dimension in dimensions[1:]:
        rows *= dimension
    return dimensions[0] // values * size * rows


def _write(path: Path, file: _File) -> int:
    infos, offset = b"", 0
    for name, dimensions, kind in file.tensors:
        infos += _text(name) + struct.pack("<I", len(dimensions))
        infos += b"".join(struct.pack("<Q", size) for size in dimensions)
        infos += struct.pack("<IQ", TYPES[kind][0], offset)
        offset += -(-tensor_bytes(dimensions, kind) // ALIGNMENT) * ALIGNMENT
    head = b"GGUF" + struct.pack("<IQQ", 3, len(file.tensors), len(file.values)) + b"".join(_pairs(file.values)) + infos
    start = -(-len(head) // ALIGNMENT) * ALIGNMENT
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as output:
        output.write(head)
        output.truncate(start + offset)
    return start + offset


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _pairs(values: Mapping[str, Value]) -> Iterator[bytes]:
    for key, value in values.items():
        if isinstance(value, bool):
            yield _text(key) + struct.pack("<I?", 7, value)
        elif isinstance(value, int):
            yield _text(key) + struct.pack("<II", 4, value)
        elif isinstance(value, float):
            yield _text(key) + struct.pack("<If", 6, value)
        elif isinstance(value, str):
            yield _text(key) + struct.pack("<I", 8) + _text(value)
        elif isinstance(value[0], str):
            texts = b"".join(_text(str(item)) for item in value)
            yield _text(key) + struct.pack("<IIQ", 9, 8, len(value)) + texts
        else:
            yield _text(key) + struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)
