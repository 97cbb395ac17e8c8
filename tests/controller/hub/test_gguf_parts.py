"""Where the bytes of a GGUF file belong, and headers read by range from a hub before anything is downloaded."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_controller.domain.plan import DeployRequest
from fleet_controller.domain.weights import WeightParts
from fleet_controller.hub.gguf import parse_header, whole
from fleet_controller.hub.gguf_shape import parts_of, shape_of
from fleet_controller.hub.resolve import resolve_model
from fleet_inventory.catalog import load_catalog
from support.stand_in_hub import StandInHub

REPOSITORY = "acme/shaped-GGUF"
F16, Q8_0 = 1, 8


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(
    tensors: dict[str, tuple[tuple[int, ...], int]], words: tuple[str, ...] = (), note: str = "", /, **keys: int
) -> bytes:
    """A header, with its data left out where nobody reads them; `words` are its vocabulary."""
    named = b"".join(
        text(f"qwen3.{key.replace('__', '.')}") + struct.pack("<II", 4, item) for key, item in keys.items()
    )
    body = text("general.architecture") + struct.pack("<I", 8) + text("qwen3") + named
    body += text("quantize.imatrix.file") + struct.pack("<I", 8) + text(note)
    body += text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, len(words)) + b"".join(map(text, words))
    infos = b"".join(
        text(name)
        + struct.pack("<I", len(shape))
        + struct.pack(f"<{len(shape)}Q", *shape)
        + struct.pack("<IQ", kind, 0)
        for name, (shape, kind) in tensors.items()
    )
    return b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys) + 3) + body + infos


KEYS = {"block_count": 2, "embedding_length": 64, "attention__head_count": 2, "feed_forward_length": 96,
        "nextn_predict_layers": 1, "context_length": 4096}  # fmt: skip


def tensors(kind: int = Q8_0, *, tied: bool = False) -> dict[str, tuple[tuple[int, ...], int]]:
    head = {} if tied else {"output.weight": ((64, 1024), kind)}
    return {
        "token_embd.weight": ((64, 1024), kind), "output_norm.weight": ((64,), 0), **head,
        "blk.0.attn_q.weight": ((64, 64), kind), "blk.0.ffn_up_exps.weight": ((64, 96, 4), kind),
        "blk.1.attn_q.weight": ((64, 128), kind), "blk.1.nextn.eh_proj.weight": ((128, 64), kind),
    }  # fmt: skip


def test_every_byte_has_its_place() -> None:
    header = parse_header(gguf(tensors(), **KEYS))
    parts = parts_of([header])
    in_q8 = 34 / 32
    assert parts == WeightParts(
        embedding_bytes=int(64 * 1024 * in_q8), output_bytes=int(64 * 1024 * in_q8),
        block_bytes=(int(64 * (64 + 96 * 4) * in_q8),), expert_bytes=int(64 * 96 * 4 * in_q8),
        nextn_bytes=int(64 * 256 * in_q8), other_bytes=64 * 4,
    )  # fmt: skip
    assert parts is not None and parts.total_bytes == header.tensor_bytes
    shape = shape_of(header)
    assert shape is not None
    assert (shape.layers, shape.width, shape.feed_forward, shape.vocabulary) == (1, 64, 96, 1024)


def test_a_tied_head_takes_nothing_and_gated_queries_are_seen() -> None:
    tied = parts_of([parse_header(gguf(tensors(tied=True), **KEYS))])
    assert tied is not None and tied.output_bytes == 0
    gated: dict[str, tuple[tuple[int, ...], int]] = {"blk.0.attn_q.weight": ((64, 128), Q8_0)}
    assert (shape := shape_of(parse_header(gguf(gated, **KEYS)))) is not None and shape.gated_queries
    assert (shape := shape_of(parse_header(gguf(tensors(), **KEYS)))) is not None and not shape.gated_queries


def test_the_parts_of_a_split_model_are_one_model() -> None:
    every = tensors()
    first = parse_header(gguf(dict(list(every.items())[:3]), **KEYS))
    second = parse_header(gguf(dict(list(every.items())[3:])))
    assert parts_of([first, second]) == parts_of([parse_header(gguf(every, **KEYS))])
    assert shape_of(whole([first, second])) == shape_of(parse_header(gguf(every, **KEYS)))


def test_a_type_that_nobody_knows_leaves_the_parts_open() -> None:
    assert parts_of([parse_header(gguf({"token_embd.weight": ((64, 8), 4711)}, **KEYS))]) is None


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandInHub]:
    with StandInHub(tmp_path / "hub") as running:
        yield running


def add(hub: StandInHub, quantization: str, kind: int) -> bytes:
    """A file whose data are longer than its header by far."""
    content = gguf(tensors(kind), **KEYS) + bytes(12 << 20)
    hub.add(REPOSITORY, f"shaped-{quantization}.gguf", content)
    return content


def test_headers_are_read_by_range_and_no_file_is_fetched(hub: StandInHub) -> None:
    size = len(add(hub, "Q8_0", Q8_0)) + len(add(hub, "F16", F16))
    resolved = resolve_model(DeployRequest(repository=REPOSITORY), load_catalog(), hub.url)
    found = {item.quantization: item.parts for item in resolved.artifacts}
    assert found["F16"] == parts_of([parse_header(gguf(tensors(F16), **KEYS))])
    assert found["Q8_0"] == parts_of([parse_header(gguf(tensors(Q8_0), **KEYS))])
    assert hub.bytes_served() < size


VOCABULARY = tuple(f"word {number}" * 40 for number in range(20_000))  # some MB, as real headers have


def with_vocabulary(kind: int, note: str = "") -> bytes:
    """As the quantizations of a repository are: the same keys but for a few, the same tensors in other types."""
    return gguf(tensors(kind), VOCABULARY, note, **KEYS)


def test_of_many_quantizations_one_header_is_read_whole_and_of_the_others_the_table_of_tensors(hub: StandInHub) -> None:
    kinds = {"Q8_0": Q8_0, "F16": F16, "Q6_K": Q8_0, "BF16": F16, "Q5_K_M": Q8_0, "Q4_K_M": F16}
    for number, (quantization, kind) in enumerate(kinds.items()):
        content = with_vocabulary(kind, "x" * 500 * number)
        hub.add(REPOSITORY, f"shaped-{quantization}.gguf", content + bytes(12 << 20))
    resolved = resolve_model(DeployRequest(repository=REPOSITORY), load_catalog(), hub.url)
    assert {item.quantization: item.parts for item in resolved.artifacts} == {
        quantization: parts_of([parse_header(gguf(tensors(kind), **KEYS))]) for quantization, kind in kinds.items()
    }
    assert resolved.warnings == ()
    assert len(hub_files_read(hub)) == len(kinds)
    assert hub.bytes_served() < 2 * len(with_vocabulary(F16)) + len(kinds) * (256 << 10)


def test_a_file_of_another_network_is_read_for_itself(hub: StandInHub) -> None:
    add(hub, "Q8_0", Q8_0)
    other = tensors(F16) | {"blk.1.attn_q.weight": ((64, 64), F16)}
    hub.add(REPOSITORY, "shaped-F16.gguf", gguf(other, **KEYS) + bytes(12 << 20))
    resolved = resolve_model(DeployRequest(repository=REPOSITORY), load_catalog(), hub.url)
    found = {item.quantization: item.parts for item in resolved.artifacts}
    assert found["F16"] == parts_of([parse_header(gguf(other, **KEYS))])
    assert found["Q8_0"] == parts_of([parse_header(gguf(tensors(Q8_0), **KEYS))])


def test_what_rests_on_an_estimate_is_said(hub: StandInHub) -> None:
    add(hub, "Q8_0", Q8_0)
    hub.add(REPOSITORY, "shaped-F16.gguf", b"no GGUF at all" + bytes(1 << 20))
    resolved = resolve_model(DeployRequest(repository=REPOSITORY), load_catalog(), hub.url)
    (warning,) = resolved.warnings
    assert warning.startswith(
        "memory of F16 is an estimate from the size of their files, since the header of shaped-F16"
    )
    assert all(item.parts is not None for item in resolved.artifacts)


def test_the_one_that_was_asked_for_is_read(hub: StandInHub) -> None:
    for quantization in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M"):
        add(hub, quantization, Q8_0)
    resolve_model(DeployRequest(repository=REPOSITORY, quantization="Q5_K_M"), load_catalog(), hub.url)
    assert hub_files_read(hub) == ["shaped-Q5_K_M.gguf"]


def hub_files_read(hub: StandInHub) -> list[str]:
    names = [path.name for path in hub.files(REPOSITORY)]
    return [name for name in names if hub.bytes_served(name)]
