"""Makes tiny Qwen3-shaped language models from nothing, with the standard library alone.

The result is what every engine of the lab can load: a Hugging Face folder (safetensors, F16) and the same weights and
tokenizer as an F16 GGUF. The tokenizer is a real byte-level BPE with the pre-tokenizer that llama.cpp calls "qwen2".

Two modes:
  chain   the blocks are switched off (almost) and embedding and output head form a chain of bigrams: every engine
          answers each chat with the same known text, then stops. That proves loading, tokenizer, template, server and
          stop token.
  random  random weights, logits ~ N(0, 1); special tokens get logit -30, so generation never ends before max_tokens.

Formats: GGUF version 3 (ggml docs/gguf.md), safetensors (an 8-byte length, a JSON header, the data).
"""

import itertools
import json
import math
import random
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Mode = Literal["chain", "random"]

ANSWER = "The answer is (C)."
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)

# What tokenizer.ggml.pre = "qwen2" means in llama.cpp, as the Hugging Face tokenizers library writes it.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The same for ASCII text in the syntax of Python's re, to train and encode here.
_ASCII_PATTERN = re.compile(
    QWEN2_PATTERN.replace(r"\p{L}\p{N}", "A-Za-z0-9").replace(r"\p{L}", "[A-Za-z]").replace(r"\p{N}", "[0-9]")
)

_CORPUS = """Let us think step by step. A fleet of small machines serves language models. Each host installs a backend,
loads a model and measures how many tokens it can process and generate per second. The manager writes every result down,
compares runs and shows a table. When a run fails, the reason is kept with the record so that a person can read it
later. user assistant system question answer options choose one of the following. The answer is (A). The answer is (B).
def main(): return 0 import os class Model: for i in range(10): print(i) { "role": "user", "content": "hello" }
water light energy system number value order field force time rate mass point line state group form part
zero one two three four five six seven eight nine ten hundred thousand million
"""


@dataclass(frozen=True)
class TinyShape:
    """The model's dimensions. Hidden and feed-forward sizes are multiples of 256, so that K-quants fit the rows."""

    vocabulary_size: int = 512
    layers: int = 2
    hidden_size: int = 256
    feed_forward_size: int = 512
    heads: int = 4
    key_value_heads: int = 2
    head_size: int = 64
    context_length: int = 16384

    def __post_init__(self) -> None:
        if self.hidden_size % 256 or self.feed_forward_size % 256:
            raise ValueError("hidden_size and feed_forward_size must be multiples of 256")
        if self.vocabulary_size < 256 + len(SPECIAL_TOKENS) + 32:
            raise ValueError("vocabulary_size must be at least 291: 256 bytes, 3 special tokens, some merges")


@dataclass(frozen=True)
class TinyModel:
    """Where the model lies. `answer` is what a chain model says to any chat; empty for a random one."""

    hf_dir: Path
    gguf_path: Path
    answer: str


@dataclass(frozen=True)
class Tokenizer:
    """A byte-level BPE: tokens by id, merges by rank, special tokens at the end of the vocabulary."""

    tokens: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]
    special_from: int

    def id_of(self, token: str) -> int:
        return self.tokens.index(token)

    def encode(self, text: str) -> list[int]:
        """Token ids of ASCII text without special tokens."""
        ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        index = {token: position for position, token in enumerate(self.tokens)}
        return [index[part] for piece in _pieces(text) for part in _merge_piece(piece, ranks)]


@dataclass(frozen=True)
class Tensor:
    """Rows x columns of little-endian F16; one row for a vector."""

    rows: int
    columns: int
    data: bytes


def make_tiny_model(
    folder: Path, mode: Mode = "chain", *, answer: str = ANSWER, seed: int = 0, name: str = "tiny", **shape: int
) -> TinyModel:
    """Write <folder>/hf/ and <folder>/<name>-F16.gguf. `shape` are fields of TinyShape.

    Raises ValueError where the answer would need the same token twice (the chain could not tell the two apart).
    """
    dimensions = TinyShape(**shape)
    tokenizer = train_tokenizer(dimensions.vocabulary_size, answer)
    weights = _make_weights(dimensions, tokenizer, mode, answer, random.Random(seed))
    hf_dir, gguf_path = folder / "hf", folder / f"{name}-F16.gguf"
    hf_dir.mkdir(parents=True, exist_ok=True)
    _write_hf_folder(hf_dir, dimensions, tokenizer, weights)
    _write_gguf(gguf_path, _gguf_metadata(dimensions, tokenizer, name), weights)
    return TinyModel(hf_dir, gguf_path, answer if mode == "chain" else "")


# --- tokenizer ------------------------------------------------------------------------------------


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's map from bytes to printable characters."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in alphabet]
    alphabet.update({byte: chr(256 + position) for position, byte in enumerate(others)})
    return alphabet


_ALPHABET = _byte_alphabet()


def _pieces(text: str) -> list[tuple[str, ...]]:
    return [tuple(_ALPHABET[byte] for byte in piece.encode()) for piece in _ASCII_PATTERN.findall(text)]


def _apply_merge(parts: Sequence[str], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    position = 0
    while position < len(parts):
        if tuple(parts[position : position + 2]) == pair:
            merged.append(pair[0] + pair[1])
            position += 2
        else:
            merged.append(parts[position])
            position += 1
    return tuple(merged)


def _merge_piece(piece: Sequence[str], ranks: Mapping[tuple[str, str], int]) -> tuple[str, ...]:
    parts = tuple(piece)
    while len(parts) > 1:
        best = min(itertools.pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        parts = _apply_merge(parts, best)
    return parts


def train_tokenizer(vocabulary_size: int, answer: str) -> Tokenizer:
    """Byte-level BPE. The answer's own words are merged first, so that each is one token; the corpus gives the rest."""
    alphabet = [_ALPHABET[byte] for byte in range(256)]
    wanted = vocabulary_size - len(alphabet) - len(SPECIAL_TOKENS)
    merges: dict[tuple[str, str], None] = {}
    for piece in _pieces(answer):
        for end in range(1, len(piece)):
            merges[("".join(piece[:end]), piece[end])] = None
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    words = Counter(_pieces(_CORPUS))
    split = {_merge_piece(word, ranks): 0 for word in words}
    for word, count in words.items():
        split[_merge_piece(word, ranks)] += count
    while len(merges) < wanted:
        pairs: Counter[tuple[str, str]] = Counter()
        for parts, count in split.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges[best] = None
        split = {_apply_merge(parts, best): count for parts, count in split.items()}
    tokens = list(dict.fromkeys([*alphabet, *("".join(pair) for pair in merges)]))[: vocabulary_size - 3]
    reserved = [f"<|reserved_{number}|>" for number in range(vocabulary_size - 3 - len(tokens))]
    return Tokenizer((*tokens, *SPECIAL_TOKENS, *reserved), tuple(merges), len(tokens))


# --- weights --------------------------------------------------------------------------------------


def _halves(values: Iterable[float]) -> bytes:
    numbers = list(values)
    return struct.pack(f"<{len(numbers)}e", *numbers)


def _random_tensor(rows: int, columns: int, deviation: float, generator: random.Random) -> Tensor:
    """Random sign, magnitude uniform in [s, 2s): written as F16 bits, which costs no Python loop over the weights.

    s is the power of two nearest to deviation / 1.53 (the deviation of that distribution is s * sqrt(7/3)).
    """
    exponent = max(1, 15 + round(math.log2(deviation / math.sqrt(7 / 3))))
    count = rows * columns
    keep = int.from_bytes(b"\xff\x83" * count, "little")  # sign bit and the ten bits of the mantissa
    exponents = int.from_bytes(struct.pack("<H", exponent << 10) * count, "little")
    bits = int.from_bytes(generator.randbytes(2 * count), "little") & keep | exponents
    return Tensor(rows, columns, bits.to_bytes(2 * count, "little"))


def _make_weights(
    shape: TinyShape, tokenizer: Tokenizer, mode: Mode, answer: str, generator: random.Random
) -> dict[str, Tensor]:
    """Tensors by their Hugging Face name.

    Row t of the embedding is (0.5, sqrt(0.75) * u_t): dimension 0 is shared by all tokens, u_t is a random unit vector.
    After the final RMS norm that row is scaled by sqrt(hidden), which the head's rows divide out again.
    """
    hidden, vocabulary = shape.hidden_size, shape.vocabulary_size
    amplitude = 1 / math.sqrt(hidden - 1)
    directions = [
        [0.0, *(amplitude if generator.getrandbits(1) else -amplitude for _ in range(hidden - 1))]
        for _ in range(vocabulary)
    ]
    shared = math.sqrt(0.75)
    embedding = b"".join(_halves([0.5, *(shared * value for value in row[1:])]) for row in directions)
    if mode == "chain":
        head = _chain_head(shape, tokenizer, answer, directions)
    else:
        head = _random_head(shape, tokenizer, generator)
    weights = {
        "model.embed_tokens.weight": Tensor(vocabulary, hidden, embedding),
        "lm_head.weight": head,
        "model.norm.weight": _ones(hidden),
    }
    for layer in range(shape.layers):
        weights.update(_block(f"model.layers.{layer}.", shape, 1e-3 if mode == "chain" else 0.3, generator))
    return weights


def _always(logit: float, hidden: int) -> float:
    """The weight on dimension 0 that adds this logit whatever the token before is."""
    return logit / (math.sqrt(hidden) * 0.5)


def _chain_head(shape: TinyShape, tokenizer: Tokenizer, answer: str, directions: Sequence[Sequence[float]]) -> Tensor:
    """Each token of the chain raises the logit of its follower to 40; any other token starts the chain (logit 20)."""
    hidden = shape.hidden_size
    chain = [tokenizer.encode("\n")[-1], *tokenizer.encode(answer), tokenizer.id_of(TURN_END)]
    if len(set(chain)) != len(chain):
        raise ValueError(f"the answer {answer!r} needs the same token twice: {[tokenizer.tokens[t] for t in chain]}")
    rows = {token: [0.0] * hidden for token in chain}
    scale = 40 / (math.sqrt(hidden) * math.sqrt(0.75))
    for before, after in itertools.pairwise(chain):
        rows[after] = [value + scale * part for value, part in zip(rows[after], directions[before], strict=True)]
    rows[chain[1]][0] += _always(20, hidden)
    empty = bytes(2 * hidden)
    data = b"".join(_halves(rows[t]) if t in rows else empty for t in range(shape.vocabulary_size))
    return Tensor(shape.vocabulary_size, hidden, data)


def _random_head(shape: TinyShape, tokenizer: Tokenizer, generator: random.Random) -> Tensor:
    hidden = shape.hidden_size
    plain = _random_tensor(tokenizer.special_from, hidden, hidden**-0.5, generator)
    never = _halves([_always(-30, hidden), *([0.0] * (hidden - 1))])
    return Tensor(shape.vocabulary_size, hidden, plain.data + never * (shape.vocabulary_size - tokenizer.special_from))


def _ones(size: int) -> Tensor:
    return Tensor(1, size, _halves([1.0]) * size)


def _block(prefix: str, shape: TinyShape, damping: float, generator: random.Random) -> dict[str, Tensor]:
    hidden, inner = shape.hidden_size, shape.feed_forward_size
    query, key_value = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size

    def matrix(rows: int, columns: int, factor: float = 1.0) -> Tensor:
        return _random_tensor(rows, columns, factor * columns**-0.5, generator)

    damped = damping / math.sqrt(hidden)
    return {
        prefix + "input_layernorm.weight": _ones(hidden),
        prefix + "post_attention_layernorm.weight": _ones(hidden),
        prefix + "self_attn.q_proj.weight": matrix(query, hidden),
        prefix + "self_attn.k_proj.weight": matrix(key_value, hidden),
        prefix + "self_attn.v_proj.weight": matrix(key_value, hidden),
        prefix + "self_attn.o_proj.weight": matrix(hidden, query, damped),
        prefix + "self_attn.q_norm.weight": _ones(shape.head_size),
        prefix + "self_attn.k_norm.weight": _ones(shape.head_size),
        prefix + "mlp.gate_proj.weight": matrix(inner, hidden),
        prefix + "mlp.up_proj.weight": matrix(inner, hidden),
        prefix + "mlp.down_proj.weight": matrix(hidden, inner, damped),
    }


# --- Hugging Face folder --------------------------------------------------------------------------


def _write_hf_folder(folder: Path, shape: TinyShape, tokenizer: Tokenizer, weights: Mapping[str, Tensor]) -> None:
    end_of_text, turn_end = tokenizer.id_of(END_OF_TEXT), tokenizer.id_of(TURN_END)
    documents: dict[str, object] = {
        "config.json": _config(shape, end_of_text, turn_end),
        "generation_config.json": {
            "bos_token_id": end_of_text,
            "eos_token_id": [turn_end, end_of_text],
            "pad_token_id": end_of_text,
            "do_sample": False,
        },
        "tokenizer.json": _tokenizer_document(tokenizer),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": False,
            "bos_token": None,
            "eos_token": TURN_END,
            "pad_token": END_OF_TEXT,
            "unk_token": None,
            "clean_up_tokenization_spaces": False,
            "model_max_length": shape.context_length,
            "chat_template": CHAT_TEMPLATE,
        },
        "special_tokens_map.json": {"eos_token": TURN_END, "pad_token": END_OF_TEXT},
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2, ensure_ascii=False), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    _write_safetensors(folder / "model.safetensors", weights)


def _config(shape: TinyShape, end_of_text: int, turn_end: int) -> dict[str, object]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": shape.vocabulary_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.feed_forward_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "head_dim": shape.head_size,
        "max_position_embeddings": shape.context_length,
        "max_window_layers": shape.layers,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "initializer_range": 0.02,
        "bos_token_id": end_of_text,
        "eos_token_id": turn_end,
        "pad_token_id": end_of_text,
        "torch_dtype": "float16",
        "use_sliding_window": False,
        "sliding_window": None,
    }


def _tokenizer_document(tokenizer: Tokenizer) -> dict[str, object]:
    """tokenizer.json of the Hugging Face tokenizers library."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = list(enumerate(tokenizer.tokens))[tokenizer.special_from :]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": position, "content": token, **flags} for position, token in special],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": QWEN2_PATTERN}, "behavior": "Isolated", "invert": False},
                byte_level,
            ],
        },
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: position for position, token in enumerate(tokenizer.tokens[: tokenizer.special_from])},
            "merges": [list(pair) for pair in tokenizer.merges],
        },
    }


def _write_safetensors(path: Path, weights: Mapping[str, Tensor]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in weights.items():
        dimensions = [tensor.columns] if tensor.rows == 1 else [tensor.rows, tensor.columns]
        header[name] = {"dtype": "F16", "shape": dimensions, "data_offsets": [offset, offset + len(tensor.data)]}
        offset += len(tensor.data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in weights.values():
            file.write(tensor.data)


# --- GGUF -----------------------------------------------------------------------------------------

_GGUF_ALIGNMENT = 32  # bytes; the format's default
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9  # gguf_metadata_value_type
_GGML_F32, _GGML_F16 = 0, 1  # ggml_type
_FILE_TYPE_MOSTLY_F16 = 1  # llama_ftype
_TOKEN_NORMAL, _TOKEN_CONTROL = 1, 3  # llama_token_type
_GGUF_BLOCK_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf_string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _gguf_value(value: object) -> bytes:
    """Type and value. Whole numbers become uint32 (int32 inside a list), as llama.cpp expects them for these keys."""
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _gguf_string(value)
    if isinstance(value, list) and isinstance(value[0], str):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_gguf_string, value))
    if isinstance(value, list):
        return struct.pack(f"<IIQ{len(value)}i", _ARRAY, _INT32, len(value), *value)
    raise TypeError(f"no GGUF type for {type(value).__name__}")


def _gguf_metadata(shape: TinyShape, tokenizer: Tokenizer, name: str) -> dict[str, object]:
    end_of_text = tokenizer.id_of(END_OF_TEXT)
    special = tokenizer.special_from
    return {
        "general.architecture": "qwen3",
        "general.name": name,
        "general.type": "model",
        "general.size_label": "tiny",
        "general.license": "cc0-1.0",
        "general.file_type": _FILE_TYPE_MOSTLY_F16,
        "qwen3.context_length": shape.context_length,
        "qwen3.embedding_length": shape.hidden_size,
        "qwen3.block_count": shape.layers,
        "qwen3.feed_forward_length": shape.feed_forward_size,
        "qwen3.attention.head_count": shape.heads,
        "qwen3.attention.head_count_kv": shape.key_value_heads,
        "qwen3.attention.key_length": shape.head_size,
        "qwen3.attention.value_length": shape.head_size,
        "qwen3.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen3.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": list(tokenizer.tokens),
        "tokenizer.ggml.token_type": [
            _TOKEN_NORMAL if position < special else _TOKEN_CONTROL for position in range(shape.vocabulary_size)
        ],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in tokenizer.merges],
        "tokenizer.ggml.eos_token_id": tokenizer.id_of(TURN_END),
        "tokenizer.ggml.padding_token_id": end_of_text,
        "tokenizer.ggml.bos_token_id": end_of_text,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _gguf_name(name: str) -> str:
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "lm_head.weight": "output.weight",
        "model.norm.weight": "output_norm.weight",
    }
    if name in whole:
        return whole[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_GGUF_BLOCK_NAMES[rest.removesuffix('.weight')]}.weight"


def _write_gguf(path: Path, metadata: Mapping[str, object], weights: Mapping[str, Tensor]) -> None:
    """Vectors are stored as F32, which llama.cpp wants for norms; matrices as F16."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(weights), len(metadata))
    head += b"".join(_gguf_string(key) + _gguf_value(value) for key, value in metadata.items())
    blobs: list[bytes] = []
    offset = 0
    for name, tensor in weights.items():
        vector = tensor.rows == 1
        dimensions = [tensor.columns] if vector else [tensor.columns, tensor.rows]
        data = _as_float32(tensor) if vector else tensor.data
        head += _gguf_string(_gguf_name(name)) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        head += struct.pack("<IQ", _GGML_F32 if vector else _GGML_F16, offset)
        blobs.append(data + bytes(-len(data) % _GGUF_ALIGNMENT))
        offset += len(blobs[-1])
    with path.open("wb") as file:
        file.write(head + bytes(-len(head) % _GGUF_ALIGNMENT))
        file.writelines(blobs)


def _as_float32(tensor: Tensor) -> bytes:
    return struct.pack(f"<{tensor.columns}f", *struct.unpack(f"<{tensor.columns}e", tensor.data))
