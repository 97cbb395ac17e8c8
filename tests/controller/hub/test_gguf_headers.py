"""GGUF headers: a real small file, hybrids and MLA, and files that are cut off or none at all."""

import struct
from pathlib import Path
from typing import Any

import pytest

from fleet_controller.hub.errors import GgufError
from fleet_controller.hub.gguf import parse_header, read_file, read_url
from fleet_controller.hub.gguf_shape import shape_of
from support.stand_in_hub import StandInHub
from support.tiny_model import make_tiny_model


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(item: Any) -> bytes:
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    inner = b"".join(value(one)[4:] for one in item)
    return struct.pack("<IIQ", 9, 8 if isinstance(item[0], str) else 4, len(item)) + inner


def header(architecture: str, tensors: tuple[tuple[str, tuple[int, ...], int], ...] = (), **keys: Any) -> bytes:
    named = {"general.architecture": architecture}
    named |= {f"{architecture}.{key.replace('__', '.')}": item for key, item in keys.items()}
    body = b"".join(text(key) + value(item) for key, item in named.items())
    infos = b"".join(
        text(name)
        + struct.pack("<I", len(shape))
        + struct.pack(f"<{len(shape)}Q", *shape)
        + struct.pack("<IQ", kind, 0)
        for name, shape, kind in tensors
    )
    return b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(named)) + body + infos


QWEN35_27B = header(
    "qwen35", block_count=64, context_length=262144, embedding_length=5120, attention__head_count=24,
    attention__head_count_kv=4, attention__key_length=256, attention__value_length=256, ssm__inner_size=48 * 128,
    ssm__state_size=128, full_attention_interval=4,
)  # fmt: skip
GLM = header(
    "deepseek2", block_count=47, context_length=202752, embedding_length=2048, attention__head_count=20,
    attention__head_count_kv=1, attention__key_length=576, attention__value_length=512, attention__kv_lora_rank=512,
    rope__dimension_count=64,
)  # fmt: skip


@pytest.mark.parametrize(
    ("data", "kv_bytes_per_token", "state_bytes", "context"),
    [(QWEN35_27B, 65536, 150994944, 262144), (GLM, 54144, 0, 202752)],
)
def test_shapes_of_known_models(data: bytes, kv_bytes_per_token: int, state_bytes: int, context: int) -> None:
    shape = shape_of(parse_header(data))
    assert shape is not None
    assert shape.kv_bytes_per_token() == kv_bytes_per_token
    assert shape.recurrent_bytes_per_sequence() == state_bytes
    assert shape.context_length == context


def test_a_list_of_heads_names_the_layers_without_a_cache() -> None:
    data = header(
        "lfm2", block_count=4, embedding_length=64, attention__head_count=8, attention__head_count_kv=[0, 2, 0, 2]
    )
    shape = shape_of(parse_header(data))
    assert shape is not None and (shape.kv_layers, shape.kv_heads, shape.recurrent_layers) == (2, 2, 2)


def test_heads_default_to_the_embedding_divided() -> None:
    data = header("llama", block_count=2, embedding_length=64, attention__head_count=4)
    shape = shape_of(parse_header(data))
    assert shape is not None and (shape.kv_heads, shape.key_length) == (4, 16)


def test_a_header_without_layers_has_no_shape() -> None:
    assert shape_of(parse_header(header("clip"))) is None


def test_tensors_are_counted() -> None:
    data = header("x", tensors=(("a", (256, 4), 12), ("b", (32,), 0), ("c", (64, 2), 8)), vocabulary=["a", "b"])
    parsed = parse_header(data)
    assert parsed.tensor_count == 3
    assert parsed.parameters == 1024 + 32 + 128
    assert parsed.tensor_bytes == 4 * 144 + 32 * 4 + 4 * 34
    assert parsed.header_bytes == len(data)
    unknown = parse_header(header("x", tensors=(("a", (32,), 9999),)))
    assert unknown.tensor_bytes is None


def test_the_tiny_model(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path)
    parsed = read_file(model.gguf_path)
    shape = shape_of(parsed)
    assert parsed.architecture == "qwen3" and shape is not None
    assert parsed.tensor_bytes is not None and parsed.tensor_bytes <= model.gguf_path.stat().st_size
    assert shape.kv_layers == shape.layers > 0


def test_a_truncated_file_is_noticed_at_every_length(tmp_path: Path) -> None:
    content = make_tiny_model(tmp_path).gguf_path.read_bytes()
    end = parse_header(content).header_bytes
    path = tmp_path / "cut.gguf"
    for length in (0, 3, 20, 200, end // 2, end - 1, end + 1, len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(GgufError) as raised:
            read_file(path)
        assert raised.value.remedy


@pytest.mark.parametrize(
    "data",
    [
        b"<html><body>404</body></html>",
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 62),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<I", 77),
    ],
)
def test_what_is_no_gguf(data: bytes) -> None:
    with pytest.raises(GgufError):
        parse_header(data)


@pytest.mark.parametrize("ignore_range", [False, True])
def test_a_header_over_http(tmp_path: Path, ignore_range: bool) -> None:
    content = make_tiny_model(tmp_path / "model").gguf_path.read_bytes()
    with StandInHub(tmp_path / "hub", ignore_range=ignore_range) as hub:
        hub.add("acme/tiny-GGUF", "tiny-F16.gguf", content)
        parsed = read_url(f"{hub.url}/acme/tiny-GGUF/resolve/main/tiny-F16.gguf")
    assert parsed == parse_header(content)


def test_a_header_over_http_that_ends_too_early(tmp_path: Path) -> None:
    with StandInHub(tmp_path) as hub:
        hub.add("acme/cut-GGUF", "cut.gguf", QWEN35_27B[:100])
        with pytest.raises(GgufError, match="cut off"):
            read_url(f"{hub.url}/acme/cut-GGUF/resolve/main/cut.gguf")
